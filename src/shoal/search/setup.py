"""What stays the same for all steps of a search, and who is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from shoal.network import Network
from shoal.options import Recipe, at_budget, find_recipe
from shoal.search.budget import Clock
from shoal.search.gauge import Data, Gauge
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.records import Step
from shoal.search.rewind import Rewind
from shoal.search.run import Run
from shoal.tasks import Task, find_task
from shoal.training import BatchReport, EpochReport


class Listener:
    """Is told of a search's progress; this one ignores it. Subclass it to show something."""

    def plan(self, steps: int | None) -> None:
        """Called once with the largest number of steps; None if nobody can know."""

    def stage(self, step: int, text: str) -> None:
        """Called when something begins: "score", "fine-tune", "evaluate", …."""

    def scored(self, done: int, total: int) -> None:
        """Called when `done` of `total` batches are scored; the total is 0 if it is not known."""

    def batch(self, report: BatchReport, epochs: int) -> None:
        """Called after each optimizer step of a training of so many epochs."""

    def epoch(self, report: EpochReport, epochs: int) -> None:
        """Called after each epoch."""

    def step(self, step: Step, resumed: bool) -> None:
        """Called after each step; `resumed` if an earlier call finished it."""

    def note(self, text: str) -> None:
        """Called with what the user should know."""


@dataclass
class Spent:
    """What a piece of training took: JSON values, known at its end in the main process alone."""

    energy: Mapping[str, Any] | None = None


class Meter(Protocol):
    """Measures what a search spends and what its result saves; `shoal.extras` has one of energy."""

    def training(self) -> AbstractContextManager[Spent]:
        """Return a context that measures the training inside it."""
        ...

    def summary(
        self, dense: Network, best: Network, steps: Sequence[Step], lab: Any
    ) -> Mapping[str, Any]:
        """Return JSON values for the end of the search, `Result.energy`; leave the networks be.

        Each step says what its training took; `lab`, the search's `Lab`, has data and options.
        """
        ...


@dataclass(frozen=True)
class Setup:
    """What stays the same for all steps of a search."""

    base: Network  # the captured original, with an empty plan
    data: Data
    options: SearchOptions
    machine: MachineOptions
    recipe: Recipe
    gauge: Gauge
    listener: Listener
    rewind: Rewind
    task: Task = field(default_factory=find_task)  # what the network is for
    fit: Callable[[Network], object] | None = None  # trains in place of the built-in trainer
    run: Run | None = None  # None keeps nothing
    meter: Meter | None = None
    clock: Clock = field(default_factory=Clock)

    def named_recipe(self, name: str | None) -> Recipe | None:
        """Return a recipe by its name at the run's budget, for this machine; None without one."""
        if name is None:
            return None
        found = at_budget(find_recipe(name), self.options.budget or 1.0)
        return found.computed_like(self.recipe)
