"""The network together with its loss, as one module, and what a method adds to training.

The loss is inside the module that data parallelism wraps, so everything that comes out of it takes
part in the loss, whatever else the network returns. The penalty sees what no module hands out: the
values at sites, blocks and stretches of the graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shoal.data.batch import Batch, before
from shoal.errors import ConfigError, ShoalError, TrainingError, unknown_name
from shoal.network import Network
from shoal.network.runner import handing_out
from shoal.options import Recipe
from shoal.tasks import Task
from shoal.tasks.task import at_least_fp32, hits_of, losses_of

Values: TypeAlias = Mapping[str, Any]
"""By place: the tensor that goes into a site; what goes into a block or stretch and comes out."""


@dataclass(frozen=True)
class Hooks:
    """Those of `fit`; see there."""

    penalty: Callable[[nn.Module, Values], Tensor] | None = None
    at: tuple[str, ...] = ()
    groups: Callable[[nn.Module], Iterable[Mapping[str, Any]]] | None = None
    after_step: Callable[[nn.Module], object] | None = None
    after_epoch: Callable[[nn.Module], bool] | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at and self.penalty is None:
            raise ConfigError("at names places but there is no penalty: give penalty, or omit at")

    def names(self) -> dict[str, Any]:
        """Return what a checkpoint remembers of them: names, not code."""
        functions = {name: getattr(self, name) for name in _FUNCTIONS}
        given = {key: _name_of(hook) for key, hook in functions.items() if hook is not None}
        return {**given, "at": [*self.at]}


_FUNCTIONS = ("penalty", "groups", "after_step", "after_epoch")


def _name_of(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__qualname__", type(hook).__qualname__))


class Objective(nn.Module):
    """Maps a batch to the sum of its samples' losses, with the network's weights as parameters."""

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        task: Task,
        teacher: nn.Module | None,
        hooks: Hooks,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.task = task
        # In a tuple, because a module's attribute would count the teacher's weights as its own.
        self._teacher = (teacher,)
        self.hooks = hooks
        # The form of the network's output, without values, once targets were checked against it.
        self.output_seen: Tensor | None = None
        # What a pass computes: `computed`, or that compiled.
        self.compute: Callable[..., tuple[Tensor, Tensor]] = self.computed
        self._values: dict[str, Any] = {}
        self._places = _places(network, hooks.at)

    def listening(self) -> AbstractContextManager[object]:
        """Return the context in which forward passes collect what the penalty asked for."""
        if not self._places or not isinstance(self.network, Network):
            return nullcontext()
        nodes = [node for place in self._places.values() for node in place]

        def take(values: list[Any]) -> None:
            left = iter(values)
            for name, place in self._places.items():
                found = tuple(next(left) for _ in place)
                self._values[name] = found[0] if len(found) == 1 else found

        return handing_out(self.network, nodes, take)

    def forward(
        self, batch: Batch, check: bool = False, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the sum over the batch of losses and penalty [], and what to report of it [3].

        That is the sum of the losses alone, the number of hits (NaN: answers are not right or
        wrong) and the sum of the penalty (0 without one), detached. To `check` targets waits for
        the device. Of inputs that were mixed (`Batch.mixed`), the loss is that share of the one by
        a sample's own target, and the rest by the target of the one before it.
        """
        return self.compute(batch, check, share)

    def computed(
        self, batch: Batch, check: bool = False, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute what `forward` returns."""
        output = self.task.output(self.network(*batch.args, **batch.kwargs))
        target = self._checked(output, batch, check)
        taught = self.recipe.distill
        parts = []
        if taught < 1.0:
            smoothing = self.recipe.label_smoothing
            losses = losses_of(self.task, output, target, batch.size, smoothing)
            if share is not None:
                other = losses_of(self.task, output, before(target), batch.size, smoothing)
                losses = other.lerp(losses, share.to(losses))
            parts.append((1.0 - taught) * losses.sum())
        if taught > 0.0:
            parts.append(taught * self._teacher_loss(output, batch))
        loss = torch.stack(parts).sum()
        found = self._hits(output, target, batch.size).to(loss)
        if self.hooks.penalty is None:
            return loss, torch.stack([loss, found, torch.zeros_like(loss)]).detach()
        given = self.hooks.penalty(self.network, dict(self._values))
        self._values.clear()  # the graph of autograd holds what backward needs
        # A sample's share: the mean over the samples of a step then counts the penalty once.
        penalty = _scalar(given).to(loss) * batch.size
        return loss + penalty, torch.stack([loss, found, penalty]).detach()

    def _checked(self, output: Any, batch: Batch, check: bool) -> Any:
        """Return the batch's target as the task takes it."""
        target = self.task.check(output, batch.target, check)
        if check and isinstance(output, Tensor):
            self.output_seen = torch.empty_like(output, device="meta")
        return target

    def _teacher_loss(self, output: Any, batch: Batch) -> Tensor:
        (teacher,) = self._teacher
        assert teacher is not None  # `fit` has seen to it
        with torch.no_grad():
            wanted = self.task.output(teacher(*batch.args, **batch.kwargs))
        return distillation_losses(self.task, output, wanted, self.recipe.temperature).sum()

    @torch.no_grad()
    def _hits(self, output: Any, target: Any, size: int) -> Tensor:
        """Return the number of hits; NaN if answers are not right or wrong."""
        if self.task.has_hits:
            try:
                return hits_of(self.task, output, target, size).sum()
            except ShoalError:  # a user's loss takes targets that the task does not
                pass
        return torch.tensor(math.nan)


def distillation_losses(task: Task, student: Any, teacher: Any, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened outputs for each sample, `[B]`.

    The form of Hinton et al. 2015, of logits that the temperature T divides: the factor T² keeps
    the gradient's size independent of T, and the gradient is zero where both agree. A task without
    probabilities has another divergence in the place of KL; of squared differences T cancels out.
    """
    if isinstance(student, Tensor) and student.shape != teacher.shape:
        raise TrainingError(
            f"the teacher's outputs have shape {list(teacher.shape)} but the network's "
            f"{list(student.shape)}: give a teacher of the same task"
        )
    return task.divergence(_softened(teacher, temperature), _softened(student, temperature)) * (
        temperature**2
    )


def _softened(output: Any, temperature: float) -> Any:
    def softer(value: Any) -> Any:
        real = isinstance(value, Tensor) and value.is_floating_point()
        return at_least_fp32(value) / temperature if real else value

    return pytree.tree_map(softer, output)


def _places(network: nn.Module, at: tuple[str, ...]) -> dict[str, tuple[fx.Node, ...]]:
    """Return the nodes to listen to by place: a site's input, or where a part starts and ends."""
    if not at:
        return {}
    if not isinstance(network, Network):
        raise ConfigError("at needs a captured network: call shoal.capture(model, inputs) first")
    known: dict[str, tuple[fx.Node, ...]] = {}
    known |= {stretch.name: (stretch.start, stretch.end) for stretch in network.stretches}
    # What a drop would leave goes in, where other branches are added before.
    known |= {b.name: (b.shortcut if b.removable else b.start, b.addition) for b in network.blocks}
    known |= {s.name: (s.node.all_input_nodes[0],) for s in network.sites}
    for place in at:
        if place not in known:
            raise unknown_name("site, block or stretch", place, known)
    return {place: known[place] for place in at}


def _scalar(penalty: Any) -> Tensor:
    if isinstance(penalty, Tensor) and penalty.numel() == 1:
        return penalty.reshape(())
    given = f"shape {list(penalty.shape)}" if isinstance(penalty, Tensor) else repr(penalty)
    raise TrainingError(f"the penalty returned {given}: return a tensor of one element")
