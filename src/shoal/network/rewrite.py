"""Change a captured graph: put layers in a stretch's place, take out what nothing uses any more."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from shoal.network.flow import makes_memory, reads_shape, upstream, writes
from shoal.network.modules import OnesChannel, SharedPReLU
from shoal.network.network import Network
from shoal.network.paths import (
    container_at,
    hand_on,
    is_taken,
    numbered,
    owner_of,
    read_of,
    tables_of,
)  # fmt: skip


def between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """Return the nodes whose values `end` needs (itself included) without going past `start`."""
    ends = ("placeholder", "get_attr")
    return set(upstream(end, lambda n: n is not start and n.op not in ends and not reads_shape(n)))


def is_closed(start: fx.Node, end: fx.Node) -> bool:
    """Whether nothing between the two tensors is needed elsewhere."""
    inside = between(start, end)

    def stays(user: fx.Node) -> bool:
        return user in inside or (reads_shape(user) and all(map(stays, user.users)))

    return all(stays(user) for node in inside - {end} for user in node.users)


# ---------------------------------------------------------------------- putting in


def free_path(network: Network, path: str) -> str:
    """Return `path`, or the first of path_1, path_2, … that names nothing yet."""
    return numbered(path, lambda name: is_taken(network._root, name))


Place: TypeAlias = tuple[int, str]


def place_of(network: Network, path: str) -> Place:
    """Return what tells one place for a module or tensor from others.

    Below a module that a model has under several paths, several paths lead to one place.
    """
    owner = owner_of(network._root, path)
    return id(None if owner is None else owner._modules), path.rpartition(".")[2]


def put_module_(network: Network, path: str, module: nn.Module) -> None:
    """Put a module at `path`, in the place of what is there or making the containers on the way."""
    parent, _, name = path.rpartition(".")
    siblings = container_at(network._root, parent)._modules
    old = siblings.get(name)
    if old is not None:  # modules may live below a layer, as an activation below its norm
        module._modules.update(old._modules)
        hand_on(old, module, read_of(network.graph, network._root, old))
    siblings[name] = module
    network.changed()


def replace_stretch_(
    network: Network,
    start: fx.Node,
    end: fx.Node,
    layers: Sequence[tuple[str, nn.Module]],
    *,
    flatten: str | None = None,
) -> fx.Node:
    """Compute `end` from `start` by layers in a row; return the node that now gives the tensor.

    Dead nodes stay until `remove_dead_`, which also compiles. The layers are paths and modules in
    order, of which none hands `start` on as it is; `flatten` to [N, features] "before" or "after".
    """
    graph = network.graph
    kept = ("shape", "dtype", "path")
    known: dict[str, Any] = {key: end.meta[key] for key in kept if key in end.meta}
    node, last = start, end

    def flattened(node: fx.Node) -> fx.Node:
        with graph.inserting_after(last):
            flat = graph.call_function(torch.ops.aten.flatten.using_ints, (node, 1))
        flat.meta = dict(known)
        return flat

    if flatten == "before":
        node = last = flattened(node)
        shape = start.meta["shape"]
        node.meta["shape"] = (shape[0], math.prod(shape[1:]))
    for path, module in layers:
        put_module_(network, path, module.train(network.training))
        before = node.meta.get("shape")
        with graph.inserting_after(last):
            node = last = graph.call_module(path, (node,))
        node.meta = {**known, "path": path.rpartition(".")[0]}
        if before is not None and (flatten == "after" or module is not layers[-1][1]):
            node.meta["shape"] = _output_shape(module, before)
    if flatten == "after":
        node = flattened(node)
    end.replace_all_uses_with(node)
    return node


def _output_shape(layer: nn.Module, shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """Return the shape that a layer gives for one; sizes that are not known stay so."""
    batch, *rest = shape
    if isinstance(layer, nn.Linear):
        return (batch, *rest[:-1], layer.out_features)
    if isinstance(layer, OnesChannel):
        return (batch, None if rest[0] is None else rest[0] + 1, *rest[1:])
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return (batch, *rest)
    sizes: list[int | None] = []
    for axis, size in enumerate(rest[1:]):
        extent = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        padding = 0 if isinstance(layer.padding, str) else int(layer.padding[axis])
        known = None if size is None else (size + 2 * padding - extent) // layer.stride[axis] + 1
        sizes.append(known)
    return (batch, layer.out_channels, *sizes)


# ---------------------------------------------------------------------- taking out


def remove_dead_(network: Network, used_before: set[str] | None = None) -> None:
    """Remove nodes that no output needs, and the modules and tensors that only they used; compile.

    What the model never used stays. `used_before` is what `used_paths` gave before the change,
    where nodes were erased since.
    """
    graph = network.graph
    before = used_paths(graph.nodes) | (used_before or set())
    live = _live(graph)
    for node in reversed(graph.nodes):
        if node not in live:
            graph.erase_node(node)
    after = used_paths(graph.nodes)
    gone = before - after
    above = {path[:i] for path in gone for i, sign in enumerate(path) if sign == "."}
    gone |= {path for path in above if not _in_use(path, after)}
    used = {place_of(network, path) for path in after}
    holding = {path[:i] for path in after for i, sign in enumerate(path) if sign == "."}
    holding_places = {place_of(network, path) for path in holding}
    for path in sorted(gone, reverse=True):
        _remove(network, path, used, holding_places)
    names = {node.name for node in graph.nodes}
    records = {name: r for name, r in network._site_records.items() if name in after}
    opaque = tuple(record for record in network.opaque if record.name in names)
    network._keep(_site_records=records, opaque=opaque)
    network.recompile()


def used_paths(nodes: Iterable[fx.Node]) -> set[str]:
    """Return the paths of the modules and tensors that nodes use."""
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that the output needs, and the inputs."""
    # A call that writes into memory is needed if the memory is: it is not the graph's own (a
    # buffer's, an input's), or a needed node reads it.
    written: dict[fx.Node, list[fx.Node]] = {}
    waiting = [node for node in graph.nodes if node.op in ("placeholder", "output")]
    for node in filter(writes, graph.nodes):
        maker = _maker(node)
        written.setdefault(maker, []).append(node)
        if not makes_memory(maker):
            waiting.append(node)
    live: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting += [*node.all_input_nodes, *written.get(node, ())]
    return live


def _maker(node: fx.Node) -> fx.Node:
    """Return the node whose memory a call writes into, looking through views."""
    while node.op == "call_function" and not makes_memory(node):
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            break
        node = source
    return node


def _remove(
    network: Network, path: str, used: Collection[Place], holding: Collection[Place]
) -> None:
    """Remove a tensor, or a module wherever it is registered; what is in use below it stays.

    `used` are the places of what is in use, `holding` those above them.
    """
    place = place_of(network, path)
    owner, name = owner_of(network._root, path), place[1]
    if owner is None or place in used:  # by another path
        return
    module = owner._modules.get(name)
    if module is None:
        owner._parameters.pop(name, None)
        owner._buffers.pop(name, None)
        owner._non_persistent_buffers_set.discard(name)
        return
    heir = nn.Module().train(module.training) if place in holding else None
    if heir is not None:
        heir._modules = module._modules
        names = (name for table in tables_of(module)[1:] for name in table)
        hand_on(module, heir, [name for name in names if (id(heir._modules), name) in used])
    for alias, child in list(network.named_modules(remove_duplicate=False)):
        if child is not module:
            continue
        place = place_of(network, alias)
        owner, name = owner_of(network._root, alias), place[1]
        if owner is None or place in used:
            continue
        if heir is not None:
            owner._modules[name] = heir
        elif place not in holding:
            owner._modules.pop(name, None)
    adopt_shared(network)


def _in_use(path: str, used: set[str]) -> bool:
    return path in used or any(other.startswith(f"{path}.") for other in used)


def adopt_shared(network: Network) -> None:
    """Let a call of a shared PReLU own its weight where the owner is no longer in the network."""
    held = set(map(id, network.modules()))
    heirs: dict[int, nn.PReLU] = {}
    for name, module in list(network.named_modules()):
        if not isinstance(module, SharedPReLU) or id(module.owner) in held:
            continue
        old = module.owner
        if id(old) in heirs:
            network.replace_module(name, SharedPReLU(heirs[id(old)]))
        else:
            heir = nn.PReLU(old.num_parameters, device="meta").train(old.training)
            heir.weight = old.weight
            heirs[id(old)] = heir
            network.replace_module(name, heir)
