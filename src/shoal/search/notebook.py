"""What one step of a search measures and writes down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from shoal.data.batch import training_batches
from shoal.distributed import from_main, is_main, sum_across
from shoal.importance import Scores
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.passes.batches import Batches
from shoal.search.coach import Coach
from shoal.search.records import Step
from shoal.search.setup import Setup, Spent
from shoal.surgery import FittedLine

T = TypeVar("T")


class Notebook:
    """What is done and measured in one step; the engine makes the step's record of it."""

    def __init__(
        self,
        setup: Setup,
        network: Network,
        dense: Network | None,
        history: Sequence[Step],
        count: Callable[[Any], int] | None = None,
    ) -> None:
        self.setup = setup
        self.network = network
        self.base, self.data, self.listener = setup.base, setup.data, setup.listener
        self.options, self.machine, self.recipe = setup.options, setup.machine, setup.recipe
        self.dense = network if dense is None else dense
        self.history = tuple(history)
        self.number = len(history)
        self.operations: list[tuple[str, tuple[str, ...]]] = []
        self.scores: Scores | None = None
        self.notes: list[str] = []
        self.quality_before: float | None = None
        self.spent: list[Spent] = []
        self.why = ""
        self.started = time.perf_counter()
        self.coach = Coach(setup, self.number, history)
        self._count = count
        self._known: dict[str, Any] = {}  # what was measured in this step
        self._lines: Mapping[str, FittedLine] = {}
        self._fresh = False  # changed and not trained since
        self._trainings = 0  # that followed a change

    def mark(self, operation: str, names: Sequence[str], scores: Scores | None = None) -> None:
        """Write down what was done to the network; the lab's verbs do so themselves.

        A method that changes weights by its own means calls this: `lab.mark("prune", layers)`.
        """
        if not names:
            return
        self._fresh, self._lines = True, {}
        self.scores = scores or self.scores
        if self.operations and self.operations[-1][0] == operation:
            names = (*self.operations.pop()[1], *names)
        self.operations.append((operation, tuple(names)))

    def names(self) -> tuple[str, ...]:
        """Return what was removed in this step; what was replaced where nothing was removed."""
        done = [names for kind, names in self.operations if kind != "replace"]
        return tuple(n for names in done or dict(self.operations).values() for n in names)

    def at_most(self, count: int) -> int:
        """Return `count`, or less if the run asks for fewer removals than that."""
        if self.options.remove is None or self._count is None:
            return count
        return min(count, self.options.remove - self._count(self))

    def energy(self) -> Mapping[str, Any] | None:
        """Return what the trainings of the step took together, as the meter has it.

        None where that was not measured as a whole: an interrupted call had begun, say.
        """
        found = [spent.energy for spent in self.spent if spent.energy is not None]
        if not found or len(found) < len(self.spent) or self.coach.seconds_before:
            return None
        return {
            name: sum(one[name] for one in found) if type(value) in (int, float) else value
            for name, value in found[-1].items()
        }

    def quality(self, network: Network | None = None) -> float:
        """Return the quality of a network on the validation data, in points."""
        return self.setup.gauge.quality(network or self.network, self.data.val)

    def predicts_one_class(self) -> bool:
        """Whether the network gives all validation samples one answer: its signal is dead.

        Where there are several answers in a sample (pixels, labels), all of them are one; of real
        values this is not asked.
        """
        task = self.setup.task
        args, kwargs = self.network.example_inputs()
        with eval_mode(self.network), torch.no_grad():
            output = task.output(self.network(*args, **kwargs))
            if task.answers(output) is None:
                return False
            classes = max(2, output.shape[1] if output.ndim > 1 else 0)
            counts = torch.zeros(classes, dtype=torch.int64)  # a process may have no batch
            for _, batch in Batches(self.data.val, device=device_of(self.network)):
                output = task.output(self.network(*batch.args, **batch.kwargs))
                answers = cast("Tensor", task.answers(output))
                counts += answers.flatten().bincount(minlength=classes).cpu()
        return int((sum_across(counts) > 0).sum()) == 1

    def once(self, name: str, measure: Callable[[], T], *, together: bool = False) -> T:
        """Return what `measure` gives, or gave when this step was begun before; JSON values.

        Each thing that is measured in a step has its own name. The main process alone calls
        `measure`, so that no other one slows it down; all do for what they train `together`.
        """

        def figures() -> Any:
            return from_main(measure() if together or is_main() else None)

        if name not in self._known:
            run = self.setup.run
            found = figures() if run is None else run.recall(self.number, name, figures)
            self._known[name] = found
        return cast("T", self._known[name])

    @property
    def batches(self) -> int:
        """How many batches an epoch of training has."""
        return training_batches(self.data.train)

    def steps_of(self, epochs: int) -> int:
        """Return how many optimizer steps so many epochs of training have, at least one."""
        return max(1, epochs * math.ceil(self.batches / self.recipe.accumulate))

    @property
    def dropped(self) -> int:
        """How many of the base's blocks are gone in the network."""
        return len(self.network.plan.names("drop")) - len(self.base.plan.names("drop"))

    def note(self, text: str) -> None:
        """Say something the user should know; the step's record keeps it."""
        self.notes.append(text)

    def done(self, why: str = "nothing is left to remove") -> bool:
        """Return False, for `step` to return, and keep why nothing more is done."""
        self.why = why
        return False
