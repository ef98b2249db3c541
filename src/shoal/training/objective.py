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
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from shoal.data.batch import Batch
from shoal.errors import ConfigError, TrainingError, unknown_name
from shoal.network import Network
from shoal.network.runner import handing_out
from shoal.options import Recipe
from shoal.training.evaluate import (
    check_targets,
    distillation_losses,
    hits,
    logits_of,
    sample_losses,
)

Loss: TypeAlias = Callable[[Any, Tensor], Tensor]

Values: TypeAlias = Mapping[str, Any]
"""By place: the tensor that goes into a site; what goes into a block or stretch and comes out."""


@dataclass(frozen=True)
class Hooks:
    """The four of `fit`; see there."""

    penalty: Callable[[nn.Module, Values], Tensor] | None = None
    at: tuple[str, ...] = ()
    groups: Callable[[nn.Module], Iterable[Mapping[str, Any]]] | None = None
    after_step: Callable[[nn.Module], object] | None = None

    def __post_init__(self) -> None:
        if self.at and self.penalty is None:
            raise ConfigError("at names places but there is no penalty: give penalty, or omit at")

    def names(self) -> dict[str, Any]:
        """Return what a checkpoint remembers of them: names, not code."""
        functions = {"penalty": self.penalty, "groups": self.groups, "after_step": self.after_step}
        given = {key: _name_of(hook) for key, hook in functions.items() if hook is not None}
        return {**given, "at": [*self.at]}


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
        loss: Loss | None,
        teacher: nn.Module | None,
        hooks: Hooks,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.loss = loss
        # In a tuple, because a module's attribute would count the teacher's weights as its own.
        self._teacher = (teacher,)
        self.hooks = hooks
        self.outputs: int | None = None  # of the network, once labels were checked against it
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

    def forward(self, batch: Batch, check: bool = False) -> tuple[Tensor, Tensor]:
        """Return the sum over the batch of losses and penalty [], and what to report of it [3].

        That is the sum of the losses alone, the number of hits (NaN: not a classification) and the
        sum of the penalty (0 without one), detached. To `check` the labels waits for the device.
        """
        return self.compute(batch, check)

    def computed(self, batch: Batch, check: bool = False) -> tuple[Tensor, Tensor]:
        """Compute what `forward` returns."""
        output = self.network(*batch.args, **batch.kwargs)
        share = self.recipe.distill
        parts = []
        if share < 1.0:
            parts.append((1.0 - share) * self._task_loss(output, batch, check))
        if share > 0.0:
            parts.append(share * self._teacher_loss(output, batch))
        loss = torch.stack(parts).sum()
        found = _hits(output, batch.target).to(loss)
        if self.hooks.penalty is None:
            return loss, torch.stack([loss, found, torch.zeros_like(loss)]).detach()
        given = self.hooks.penalty(self.network, dict(self._values))
        self._values.clear()  # the graph of autograd holds what backward needs
        # A sample's share: the mean over the samples of a step then counts the penalty once.
        penalty = _scalar(given).to(loss) * batch.size
        return loss + penalty, torch.stack([loss, found, penalty]).detach()

    def _task_loss(self, output: Any, batch: Batch, check: bool) -> Tensor:
        if self.loss is not None:
            return _summed(self.loss(output, batch.target), batch.size)  # type: ignore[arg-type]
        logits, target = logits_of(output), batch.target
        if check or logits.ndim != 2 or target is None:
            target = check_targets(logits, target)
            self.outputs = logits.shape[1]
        return sample_losses(logits, target, self.recipe.label_smoothing).sum()

    def _teacher_loss(self, output: Any, batch: Batch) -> Tensor:
        (teacher,) = self._teacher
        assert teacher is not None  # `fit` has seen to it
        with torch.no_grad():
            wanted = logits_of(teacher(*batch.args, **batch.kwargs))
        return distillation_losses(logits_of(output), wanted, self.recipe.temperature).sum()


def _places(network: nn.Module, at: tuple[str, ...]) -> dict[str, tuple[fx.Node, ...]]:
    """Return the nodes to listen to by place: a site's input, or where a part starts and ends."""
    if not at:
        return {}
    if not isinstance(network, Network):
        raise ConfigError("at needs a captured network: call shoal.capture(model, inputs) first")
    known: dict[str, tuple[fx.Node, ...]] = {}
    known |= {stretch.name: (stretch.start, stretch.end) for stretch in network.stretches}
    known |= {b.name: (b.start, b.addition) for b in network.blocks}
    known |= {s.name: (s.node.all_input_nodes[0],) for s in network.sites}
    for place in at:
        if place not in known:
            raise unknown_name("site, block or stretch", place, known)
    return {place: known[place] for place in at}


@torch.no_grad()
def _hits(output: Any, target: Tensor | None) -> Tensor:
    """Return the number of hits; NaN if the outputs or the targets do not classify."""
    if target is not None:
        logits = logits_of(output)
        soft = target.is_floating_point() and target.shape == logits.shape
        hard = not target.is_floating_point() and target.ndim == 1
        if logits.ndim == 2 and (soft or hard):
            return hits(logits, target).sum()
    return torch.tensor(math.nan)


def _summed(loss: Any, size: int) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.ndim <= 1:
        return loss.reshape(()) * size
    if isinstance(loss, Tensor) and loss.shape == (size,):
        return loss.sum()
    given = f"of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TrainingError(
        f"the loss function returned {given}: return the mean over the batch (a tensor of one "
        f"element) or one loss per sample ({size} here)"
    )


def _scalar(penalty: Any) -> Tensor:
    if isinstance(penalty, Tensor) and penalty.numel() == 1:
        return penalty.reshape(())
    given = f"shape {list(penalty.shape)}" if isinstance(penalty, Tensor) else repr(penalty)
    raise TrainingError(f"the penalty returned {given}: return a tensor of one element")
