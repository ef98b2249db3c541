"""Run a captured graph node by node, and listen to values that no module hands out.

Hooks of modules see what goes through layers. What an addition reads and gives, as criteria for
blocks need it, only the graph knows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import fx, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from shoal.network.network import Network

__all__ = ["Stretch", "Tap", "listen"]


class Stretch:
    """Nodes of a graph that are run in order; a value is let go after its last use among them.

    Args:
        nodes: in the order of the graph.
        keep: nodes whose values are kept to the end.
        told: further uses, as (node whose value is used, node after which it is).
    """

    def __init__(
        self,
        nodes: Sequence[fx.Node],
        keep: Collection[fx.Node] = (),
        told: Iterable[tuple[fx.Node, fx.Node]] = (),
    ) -> None:
        self.nodes = tuple(nodes)
        order = {node: i for i, node in enumerate(nodes)}
        last = dict(order)  # the position of each value's last use
        uses = [(source, node) for node in nodes for source in node.all_input_nodes]
        for source, user in (*uses, *told):
            if source in last:
                last[source] = max(last[source], order[user])
        self._free: dict[fx.Node, list[fx.Node]] = {}
        for source, position in last.items():
            if source not in keep:
                self._free.setdefault(self.nodes[position], []).append(source)

    def run(
        self,
        values: dict[fx.Node, Any],
        root: nn.Module,
        after: Callable[[fx.Node], None] | None = None,
    ) -> None:
        """Compute the nodes' values.

        Args:
            values: by node. It must hold what the nodes read from outside, placeholders included,
                and receives what they compute; nodes that have a value already are not run.
            root: where modules and tensors are found.
            after: called with each node when its value is there.
        """
        for node in self.nodes:
            if node not in values:
                values[node] = _compute(node, values, root)
            if after is not None:
                after(node)
            for source in self._free.get(node, ()):
                values.pop(source, None)


def _compute(node: fx.Node, values: dict[fx.Node, Any], root: nn.Module) -> Any:
    if node.op == "get_attr":
        return _attribute(root, str(node.target))
    args: Any = fx.node.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        return root.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "output":
        return args[0]
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


@dataclass(frozen=True)
class Tap:
    """Something to hear while a network runs.

    Attributes:
        after: the node after which it is heard.
        reads: the nodes whose values are told; none comes later than `after`.
        hear: called with these values, in this order.
    """

    after: fx.Node
    reads: tuple[fx.Node, ...]
    hear: Callable[..., None]


def listen(network: Network, taps: Iterable[Tap]) -> RemovableHandle:
    """Let the taps hear what every forward pass of the network computes, until the handle goes.

    The network computes the same as before. It must not be changed meanwhile.
    """
    active = _ACTIVE.setdefault(network, OrderedDict())
    handle = _Handle(network, active)
    active[handle.id] = tuple(taps)
    _rewire(network)
    return handle


_ACTIVE: WeakKeyDictionary[Network, OrderedDict[int, tuple[Tap, ...]]] = WeakKeyDictionary()


class _Handle(RemovableHandle):
    def __init__(self, network: Network, active: OrderedDict[int, tuple[Tap, ...]]) -> None:
        super().__init__(active)
        self._network = network

    def remove(self) -> None:
        super().remove()
        _rewire(self._network)


def _rewire(network: Network) -> None:
    """Compile the network's forward pass, or run it node by node where somebody listens."""
    taps = [tap for taps in _ACTIVE.get(network, {}).values() for tap in taps]
    network.recompile()
    if taps:
        network._keep(_run=_Listening(network.graph, taps))


class _Listening:
    """A forward pass that tells what it computes."""

    def __init__(self, graph: fx.Graph, taps: Sequence[Tap]) -> None:
        nodes = list(graph.nodes)
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._output = next(node for node in nodes if node.op == "output")
        self._taps: dict[fx.Node, list[Tap]] = {}
        for tap in taps:
            self._taps.setdefault(tap.after, []).append(tap)
        told = [(node, tap.after) for tap in taps for node in tap.reads]
        self._stretch = Stretch(nodes, {self._output}, told)

    def __call__(self, root: nn.Module, *leaves: Any) -> Any:
        values = dict(zip(self._inputs, leaves, strict=True))

        def after(node: fx.Node) -> None:
            for tap in self._taps.get(node, ()):
                tap.hear(*(values[n] for n in tap.reads))

        self._stretch.run(values, root, after)
        return values[self._output]
