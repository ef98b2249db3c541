"""Take what nothing uses any more out of a network: nodes, modules, tensors, records."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx, nn

from shoal.network.modules import SharedPReLU
from shoal.network.network import Network
from shoal.network.nodes import makes_memory, writes

__all__ = ["hand_over", "remove_dead_", "used_paths"]


def remove_dead_(network: Network, used_before: set[str] | None = None) -> None:
    """Remove nodes that no output needs, and the modules and tensors that only they used.

    Containers that are left without anything in use go with them. What the model held without
    using it from the beginning stays. The forward pass is compiled again.

    Args:
        network: the network, its graph already changed.
        used_before: what `used_paths` gave before the change, where nodes were erased since.
    """
    graph = network.graph
    before = used_paths(graph.nodes) | (used_before or set())
    live = _live(graph)
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)
    after = used_paths(graph.nodes)
    for path in sorted(before - after):
        _remove(network, path, after)
    names = {node.name for node in graph.nodes}
    records = {name: r for name, r in network._site_records.items() if name in after}
    opaque = tuple(record for record in network.opaque if record.name in names)
    network._keep(_site_records=records, opaque=opaque)
    network.recompile()


def used_paths(nodes: Iterable[fx.Node]) -> set[str]:
    """Return the paths of the modules and tensors that nodes use."""
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


# ---------------------------------------------------------------------- nodes


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output needs, and the inputs.

    A call that writes into memory is needed if the memory is: it is not the graph's own (a
    buffer's, an input's), or a needed node reads it.
    """
    written: dict[fx.Node, list[fx.Node]] = {}
    waiting = [node for node in graph.nodes if node.op in ("placeholder", "output")]
    for node in graph.nodes:
        if writes(node):
            maker = _maker(node)
            written.setdefault(maker, []).append(node)
            if not makes_memory(maker):
                waiting.append(node)
    live: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting.extend(node.all_input_nodes)
            waiting.extend(written.get(node, ()))
    return live


def _maker(node: fx.Node) -> fx.Node:
    """Return the node whose memory a call writes into, looking through views."""
    while node.op == "call_function" and not makes_memory(node):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            break
        node = source
    return node


# ---------------------------------------------------------------------- modules


def _remove(network: Network, path: str, used: set[str]) -> None:
    """Remove what is at `path`, and every container above it that holds nothing in use."""
    owner = _owner(network, path)
    *_, name = path.split(".")
    if owner is None:
        return  # it went with a container
    if name in owner._modules:
        _remove_module(network, path, used)
    else:
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
        owner._non_persistent_buffers_set.discard(name)
    parent = path.rpartition(".")[0]
    while parent and not _in_use(parent, used):
        _remove_module(network, parent, used)
        parent = parent.rpartition(".")[0]


def _remove_module(network: Network, path: str, used: set[str]) -> None:
    """Remove a module wherever it is registered; what is in use below it stays."""
    owner = _owner(network, path)
    module = None if owner is None else owner._modules.get(path.rpartition(".")[2])
    if module is None:
        return
    heir: nn.Module | None = None
    if _in_use(path, used):
        heir = nn.Module()
        heir._modules = module._modules
        heir.training = module.training
    for part in [module] if heir is not None else list(module.modules()):
        hand_over(network, part)
    for parent_path, parent in list(network.named_modules(remove_duplicate=False)):
        for name, child in list(parent._modules.items()):
            alias = f"{parent_path}.{name}".lstrip(".")
            if child is not module or alias in used:
                continue
            if heir is None:
                del parent._modules[name]
            else:
                parent._modules[name] = heir


def _owner(network: Network, path: str) -> nn.Module | None:
    """Return the module that holds what is at `path`, or None where it is gone."""
    module: nn.Module | None = network._root
    for name in path.split(".")[:-1]:
        module = None if module is None else module._modules.get(name)
    return module


def _in_use(path: str, used: set[str]) -> bool:
    return path in used or any(other.startswith(f"{path}.") for other in used)


def hand_over(network: Network, old: nn.Module) -> None:
    """Let another call of a shared PReLU own its weight before the owner goes."""
    if not isinstance(old, nn.PReLU):
        return
    sharers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, SharedPReLU) and module.owner is old
    ]
    if not sharers:
        return
    heir = nn.PReLU(old.num_parameters, device="meta").train(old.training)
    heir.weight = old.weight
    network.replace_module(sharers[0], heir)
    for name in sharers[1:]:
        network.replace_module(name, SharedPReLU(heir))
