"""Run a network's graph node by node: the whole of it, or a part, and listen to what it computes.

Hooks of modules see what goes through layers, and cost less: what needs no more than that (the
entropy pass among them) uses plain hooks. What an addition reads and gives, only the graph knows.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.modes import device_of, dtype_of
from shoal.network.contexts import CONTEXT_CALLS, restored_on_error
from shoal.network.flow import upstream, writes
from shoal.network.network import Network


@dataclass(frozen=True)
class Tap:
    """Something to listen to while a network runs: `hear` is called after a node has run."""

    after: fx.Node
    reads: tuple[fx.Node, ...]  # whose values it is called with; none comes later than `after`
    hear: Callable[..., None]


class Runner(fx.Interpreter):
    """Runs a network's graph, or the part of it that some nodes' values decide, node by node.

    With `start`, the values of these nodes are given, and only what they reach runs. Nothing after
    the last of `stop` (the output, if None) runs. Their values are returned, and those of `keep`.
    A value is freed after its last use. Contexts of the graph (autocast, no gradients) are entered
    and left in a part as they are in the whole. The network must not be changed meanwhile.
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
        self.end = nodes[-1]  # the output
        self.start = frozenset(start or ())
        wanted = {self.end} if stop is None else set(stop)
        part = _part(nodes, None if start is None else self.start, wanted)
        # Nodes whose values the part needs, besides those it starts from.
        self.reads = {n for node in part for n in node.all_input_nodes} - set(part) - self.start
        self._part = frozenset(part)
        self._taps = defaultdict(list)
        for tap in taps:
            self._taps[tap.after].append(tap)
        # What the loop of `fx.Interpreter` goes by: the nodes, and what to free after each.
        self.graph: Any = SimpleNamespace(nodes=part)
        self.garbage_collect_values = True
        self.user_to_last_uses = _last_uses(part, wanted | set(keep), self._taps)

    def values(
        self, *leaves: Any, given: Mapping[fx.Node, Any] | None = None
    ) -> dict[fx.Node, Any]:
        """Run, and return the values that are wanted or kept.

        A whole run takes the inputs, in the order of the graph; a partial one what is `given`: the
        values at the nodes it starts from and at those it reads. Others are handed back.
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
    last = max(map(nodes.index, stop))
    part = set(nodes[: last + 1])
    if start is not None:
        reached = set(start)
        for node in nodes:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        # Memory that is written into has to be made again, so everything runs again.
        again = any(map(writes, reached))
        part &= {node for node in nodes if node.op != "placeholder"} if again else reached
        part -= set(start)
    return [node for node in nodes if node in part or node.target in CONTEXT_CALLS]


def _last_uses(
    part: list[fx.Node], keep: Collection[fx.Node], taps: Mapping[fx.Node, list[Tap]]
) -> dict[fx.Node, list[fx.Node]]:
    """Return, by node, the nodes of the part whose values are used there for the last time."""
    last = {node: node for node in part}
    for node in part:
        heard = (source for tap in taps.get(node, ()) for source in tap.reads)
        last.update((source, node) for source in (*node.all_input_nodes, *heard) if source in last)
    free = defaultdict(list)
    for source, user in last.items():
        if source not in keep:
            free[user].append(source)
    return free


def constant_values(network: Network, nodes: Collection[fx.Node]) -> dict[fx.Node, Any]:
    """Return the values of nodes that depend on no input's, in the mode that the network is in.

    What they read of an input, its type or place, is the network's own.
    """
    own = {"dtype": dtype_of(network), "device": device_of(network)}
    needed = {s for node in nodes for s in upstream(node, lambda n: n.op != "placeholder")}
    runner = fx.Interpreter(network._root, garbage_collect_values=False, graph=network.graph)
    for node in network.graph.nodes:
        if node in needed:
            read = node.target is getattr
            runner.env[node] = own[str(node.args[1])] if read else runner.run_node(node)
    return {node: runner.env[node] for node in nodes}


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


@contextmanager
def handing_out(
    network: Network, nodes: Sequence[fx.Node], take: Callable[[list[Any]], None]
) -> Iterator[None]:
    """Let every forward pass hand out what some nodes give, at its end, by code of its own.

    Unlike listening, which goes node by node, this can be compiled; nobody may listen meanwhile.
    The network computes the same as before. It must not be changed meanwhile.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    outputs = graph.graph_copy(network.graph, copies)
    graph.output((outputs, [copies[node] for node in nodes]))
    code = graph.python_code("self")
    scope: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, f"<shoal network {id(graph):x}>", "exec"), scope)
    forward = scope["forward"]

    def run(root: nn.Module, *leaves: Any) -> Any:
        given, values = forward(root, *leaves)
        take(values)
        return given

    before = network._run
    network._keep(_run=run)
    try:
        yield
    finally:
        network._keep(_run=before)


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
