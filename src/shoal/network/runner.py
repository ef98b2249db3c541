"""Run a network's graph node by node: the whole of it, or a part, and listen to what it computes.

Hooks of modules see what goes through layers, and cost less: what needs no more than that (the
entropy pass among them) uses plain hooks. What an addition reads and gives, only the graph knows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.network.contexts import CONTEXT_CALLS, restored_on_error
from shoal.network.network import Network
from shoal.network.nodes import writes

__all__ = ["Runner", "Tap", "listen"]


@dataclass(frozen=True)
class Tap:
    """Something to listen to while a network runs.

    Attributes:
        after: the node after which `hear` is called.
        reads: the nodes whose values it is called with; none comes later than `after`.
        hear: called with these values, in this order.
    """

    after: fx.Node
    reads: tuple[fx.Node, ...]
    hear: Callable[..., None]


class Runner(fx.Interpreter):
    """Runs a network's graph, or the part of it that some nodes' values decide, node by node.

    A value is freed after its last use. Contexts of the graph (autocast, no gradients) are entered
    and left in a part as they are in the whole.

    Args:
        network: must not be changed while this is used.
        start: nodes whose values are given in the place of computed ones: only what they reach
            runs. None runs the whole.
        stop: the nodes whose values are wanted: nothing after the last of them runs. None for the
            output.
        keep: further nodes whose values are kept.
        taps: what to listen to.

    Attributes:
        end: the output node of the graph.
        reads: nodes whose values a part needs, besides those it starts from.
    """

    def __init__(
        self,
        network: Network,
        *,
        start: Collection[fx.Node] | None = None,
        stop: Collection[fx.Node] | None = None,
        keep: Collection[fx.Node] = (),
        taps: Iterable[Tap] = (),
    ) -> None:
        super().__init__(network._root, garbage_collect_values=False, graph=network.graph)
        self.extra_traceback = False
        self.network = network
        nodes = list(network.graph.nodes)
        self.end = nodes[-1]
        self.start = frozenset(start or ())
        wanted = {self.end} if stop is None else set(stop)
        part = _part(nodes, None if start is None else self.start, wanted)
        self.reads = {n for node in part for n in node.all_input_nodes} - set(part) - self.start
        self._part = frozenset(part)
        self._taps: dict[fx.Node, list[Tap]] = {}
        for tap in taps:
            self._taps.setdefault(tap.after, []).append(tap)
        # What the loop of `fx.Interpreter` goes by: the nodes, and what to free after each.
        self.graph: Any = SimpleNamespace(nodes=part)
        self.garbage_collect_values = True
        self.user_to_last_uses = _last_uses(part, wanted | set(keep), self._taps)

    def values(
        self, *leaves: Any, given: Mapping[fx.Node, Any] | None = None
    ) -> dict[fx.Node, Any]:
        """Run, and return the values that are wanted or kept.

        Args:
            leaves: the inputs of a whole run, in the order of the graph.
            given: of a partial run: the values at the nodes it starts from and at those it
                reads; others are handed back.
        """
        env = {node: value for node, value in (given or {}).items() if node not in self._part}
        device = self.network._context
        with nullcontext() if device is None else restored_on_error(device):
            try:
                self.run(*leaves, initial_env=env, enable_io_processing=False)
            finally:
                self.env = {}
        return env

    def result(self, values: Mapping[fx.Node, Any]) -> Any:
        """Return what the network itself returns, of such values."""
        return pytree.tree_unflatten(list(values[self.end]), self.network._output_structure)

    def __call__(self, root: nn.Module, *leaves: Any) -> Any:
        """Run the whole as the network's own code does; returns the leaves of its output."""
        return self.values(*leaves)[self.end]

    @override
    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for tap in self._taps.get(n, ()):
            tap.hear(*(value if node is n else self.env[node] for node in tap.reads))
        return value


def _part(
    nodes: list[fx.Node], start: Collection[fx.Node] | None, stop: Collection[fx.Node]
) -> list[fx.Node]:
    """Return the nodes to run, in the order of the graph."""
    order = {node: i for i, node in enumerate(nodes)}
    last = max(order[node] for node in stop)
    part = set(nodes)
    if start is not None:
        reached = set(start)
        for node in nodes:
            if any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        if any(writes(node) for node in reached):
            # Memory that is written into has to be made again, so everything runs again.
            part = {node for node in nodes if node.op != "placeholder"}
        else:
            part = reached
        part -= set(start)
    part = {node for node in part if order[node] <= last}
    return [node for node in nodes if node in part or node.target in CONTEXT_CALLS]


def _last_uses(
    part: list[fx.Node], keep: Collection[fx.Node], taps: Mapping[fx.Node, list[Tap]]
) -> dict[fx.Node, list[fx.Node]]:
    """Return, by node, the nodes of the part whose values are used there for the last time."""
    last = {node: node for node in part}
    for node in part:
        heard = (source for tap in taps.get(node, ()) for source in tap.reads)
        for source in (*node.all_input_nodes, *heard):
            if source in last:
                last[source] = node
    free: dict[fx.Node, list[fx.Node]] = {}
    for source, user in last.items():
        if source not in keep:
            free.setdefault(user, []).append(source)
    return free


# ---------------------------------------------------------------------- listening


def listen(network: Network, taps: Iterable[Tap]) -> RemovableHandle:
    """Let the taps hear what every forward pass of the network computes, until the handle goes.

    The network computes the same as before. It must not be changed meanwhile.
    """
    active = _ACTIVE.setdefault(network, OrderedDict())
    handle = _Handle(network, active)
    active[handle.id] = tuple(taps)
    handle.rewire()
    return handle


_ACTIVE: WeakKeyDictionary[Network, OrderedDict[int, tuple[Tap, ...]]] = WeakKeyDictionary()


class _Handle(RemovableHandle):
    def __init__(self, network: Network, active: OrderedDict[int, tuple[Tap, ...]]) -> None:
        super().__init__(active)
        self._network = network

    @override
    def remove(self) -> None:
        super().remove()
        self.rewire()

    def rewire(self) -> None:
        """Let the network run node by node where somebody listens, else by its own code."""
        taps = [tap for taps in _ACTIVE.get(self._network, {}).values() for tap in taps]
        network = self._network
        network._keep(_run=Runner(network, taps=taps) if taps else network._compiled)
