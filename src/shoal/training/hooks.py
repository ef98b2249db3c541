"""What a method adds to training: a penalty on the loss, parameter groups, a hook after each step.

The penalty sees what no module hands out: the values at sites, blocks and stretches of the graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from shoal.errors import ConfigError, TrainingError, unknown_name
from shoal.network import Network
from shoal.network.runner import Tap, listen

__all__ = ["Hooks", "Values", "listening", "penalty_of", "places"]

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


Places: TypeAlias = Mapping[str, tuple[fx.Node, ...]]


def places(network: nn.Module, at: Iterable[str]) -> Places:
    """Return the nodes to listen to by place: a site's input, or where a part starts and ends.

    Raises:
        NameNotFoundError: the network has no such place.
        ConfigError: the network is not a captured one.
    """
    wanted = tuple(at)
    if not wanted:
        return {}
    if not isinstance(network, Network):
        raise ConfigError("at needs a captured network: call shoal.capture(model, inputs) first")
    known: dict[str, tuple[fx.Node, ...]] = {}
    known |= {stretch.name: (stretch.start, stretch.end) for stretch in network.stretches}
    known |= {b.name: (b.start, b.addition) for b in network.blocks}
    known |= {s.name: (s.node.all_input_nodes[0],) for s in network.sites}
    for place in wanted:
        if place not in known:
            raise unknown_name("site, block or stretch", place, known)
    return {place: known[place] for place in wanted}


@contextmanager
def listening(network: nn.Module, chosen: Places, values: dict[str, Any]) -> Iterator[None]:
    """Write what each forward pass computes at the chosen places into `values`."""
    if not chosen:
        yield
        return
    assert isinstance(network, Network)  # `places` has seen to it; this tells mypy
    handle = listen(network, [_tap(name, nodes, values) for name, nodes in chosen.items()])
    try:
        yield
    finally:
        handle.remove()
        values.clear()


def _tap(name: str, nodes: tuple[fx.Node, ...], values: dict[str, Any]) -> Tap:
    def store(*tensors: Tensor) -> None:
        values[name] = tensors[0] if len(tensors) == 1 else tensors

    return Tap(nodes[-1], nodes, store)


def penalty_of(hooks: Hooks, network: nn.Module, values: dict[str, Any]) -> Tensor | None:
    """Return the penalty of the forward pass that `values` are from, []; None without one.

    Raises:
        TrainingError: it is not a tensor of one element.
    """
    if hooks.penalty is None:
        return None
    penalty = hooks.penalty(network, dict(values))
    values.clear()  # the graph of autograd holds what backward needs
    if isinstance(penalty, Tensor) and penalty.numel() == 1:
        return penalty.reshape(())
    given = f"shape {list(penalty.shape)}" if isinstance(penalty, Tensor) else repr(penalty)
    raise TrainingError(f"the penalty returned {given}: return a tensor of one element")
