"""For which sizes of inputs a captured network computes what its model computes.

An export writes numbers down where the model computed them from the example's height, width or
length. So the model is exported again at other sizes: numbers that stay are no sizes, and those
that follow a dimension of a tensor are read off it in the graph. Where that explains all numbers,
and all that the model's code decided by sizes, these dimensions are free. Else they are fixed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shoal.errors import CaptureError
from shoal.network.exporting import Exported, export_model
from shoal.network.flow import bound_arguments, module_path
from shoal.network.input_sizes import Sizes
from shoal.network.inputs import Call
from shoal.network.ops import op_of
from shoal.network.paths import lookup_tensor

aten = torch.ops.aten

Vary = Mapping[int, tuple[int, ...]]
"""By number of an input: its dimensions that may have other sizes."""


@dataclass(frozen=True)
class Source:
    """What a number is: the product of dimensions of a tensor, and something added."""

    tensor: fx.Node
    dims: tuple[int, ...]
    added: int = 0

    def insert(self, graph: fx.Graph) -> fx.Node:
        """Insert the calls that compute the number; return the last one."""
        sizes = [graph.call_function(aten.sym_size.int, (self.tensor, d)) for d in self.dims]
        number = sizes[0]
        for size in sizes[1:]:
            number = graph.call_function(operator.mul, (number, size))
        if self.added:
            number = graph.call_function(operator.add, (number, self.added))
        return number


@dataclass(frozen=True)
class Found:
    """What a network's sizes may be, and the numbers in its graph that are none."""

    sizes: Sizes
    replaced: Mapping[fx.Node, Mapping[int, Source]]  # by node and number of the argument's leaf

    def apply(self, graph: fx.Graph) -> None:
        """Let the graph read off its tensors what was written down as numbers."""
        for node, sources in self.replaced.items():
            leaves, structure = pytree.tree_flatten((list(node.args), dict(node.kwargs)))
            with graph.inserting_before(node):
                for index, source in sources.items():
                    leaves[index] = source.insert(graph)
            args, node.kwargs = pytree.tree_unflatten(leaves, structure)
            node.args = tuple(args)


def find_sizes(model: nn.Module, call: Call, batch: int, exported: Exported) -> Found:
    """Return for which sizes the exported graph stands, and what makes it stand for more."""
    leaves, conditions = pytree.tree_leaves(call), exported.conditions
    suspects = any(_may_hold_sizes(node, model) for node in exported.graph.nodes)
    if not suspects and not exported.comparisons:
        return Found(Sizes(_rest(leaves, _any_choice(leaves)), conditions), {})
    for vary in _choices(leaves):
        for own in (True, False):
            try:
                found = _tried(model, call, batch, exported, vary, own)
            except CaptureError:  # the model itself is not for these sizes: try multiples
                continue
            if found is None:
                break
            replaced, further = found
            return Found(Sizes(_rest(leaves, vary), (*conditions, *further)), replaced)
    return Found(fixed_sizes(call, conditions), {})


def fixed_sizes(call: Call, conditions: tuple[str, ...] = ()) -> Sizes:
    """Return the sizes of a network that is for the example's alone, but for the batch."""
    return Sizes(_rest(pytree.tree_leaves(call), {}), conditions)


def _rest(leaves: Sequence[Any], vary: Vary) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(d for d in range(1, leaf.dim()) if d not in vary.get(i, ()))
        if isinstance(leaf, Tensor)
        else ()
        for i, leaf in enumerate(leaves)
    )


# ---------------------------------------------------------------------- numbers that may be sizes

# Arguments of operations, by name, that are no sizes of a tensor.
_NO_SIZES = {
    "dim", "dims", "dim0", "dim1", "start_dim", "end_dim", "source", "destination", "groups",
    "num_groups", "step", "correction", "index", "normalized_shape",
}  # fmt: skip
_END = 2**63 - 1  # of a slice: to the end, whatever the size


def _may_hold_sizes(node: fx.Node, model: nn.Module) -> bool:
    """Whether a number that a call is given may have been computed from a size."""
    if node.op != "call_function":
        return False
    op = op_of(node.target)
    if not isinstance(node.target, torch._ops.OpOverload):
        return any(type(leaf) is int and leaf > 1 for leaf in pytree.tree_leaves(node.args))
    arguments = bound_arguments(node)
    if op.layer is not None:
        return "padding" in arguments and not _own_padding(node, arguments["padding"], model)
    if op.rectifier is not None or op.dropout is not None:
        return False
    if op.pool == "window" or "kernel_size" in arguments:
        size = _shapes([node.all_input_nodes[0]])[0]
        whole = [n for n in size[2:] if isinstance(n, int)]
        kernel = pytree.tree_leaves(arguments["kernel_size"])
        return bool(whole) and max(kernel) >= max(whole)
    numbers = [v for k, v in arguments.items() if k not in _NO_SIZES]
    return any(type(n) is int and 1 < n != _END for n in pytree.tree_leaves(numbers))


def _own_padding(node: fx.Node, padding: Any, model: nn.Module) -> bool:
    """Whether a convolution's padding is that of the module which calls it, so no size's."""
    if isinstance(padding, str) or not any(pytree.tree_leaves(padding)):
        return True
    path = module_path(node)
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return False
    own = getattr(module, "padding", None)
    return isinstance(own, str) or pytree.tree_leaves(own) == pytree.tree_leaves(padding)


# ---------------------------------------------------------------------- other sizes


def _choices(leaves: Sequence[Any]) -> Iterator[Vary]:
    """Yield which dimensions may be free: those of space, or of time."""
    tensors = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    tokens = any(t.dim() == 2 and not t.is_floating_point() for t in tensors.values())
    sequences = any(t.dim() == 3 for t in tensors.values())
    for time in (2, 1) if sequences else (2,):
        vary = {
            i: {2: (1,) if tokens else (), 3: (time,)}.get(t.dim(), tuple(range(2, t.dim())))
            for i, t in tensors.items()
        }
        if any(vary.values()):
            yield vary


def _any_choice(leaves: Sequence[Any]) -> Vary:
    choices = list(_choices(leaves))
    return {i: tuple(d for c in choices for d in c[i]) for i in (choices[0] if choices else ())}


def _resized(call: Call, vary: Vary, scale: int, own: bool) -> Call:
    """Return the call with its varied dimensions larger, each by an amount of its `own` or not."""
    leaves, structure = pytree.tree_flatten(call)
    for i, dims in vary.items():
        for j, d in enumerate(dims):
            size = leaves[i].shape[d]
            # Height and width far apart, so that they differ after many strides as well.
            larger = (scale + j) * size + 1 + 2 * j if own else scale * size
            index = torch.arange(larger, device=leaves[i].device) % size
            leaves[i] = leaves[i].index_select(d, index)
    args, kwargs = pytree.tree_unflatten(leaves, structure)
    return tuple(args), dict(kwargs)


def other_sizes(call: Call, sizes: Sizes) -> Iterator[Call]:
    """Yield calls of sizes that the network should be for, and that the example does not have."""
    for vary in _choices(pytree.tree_leaves(call)):
        free = {i: tuple(d for d in dims if not sizes.is_fixed(i, d)) for i, dims in vary.items()}
        if any(free.values()):
            yield _resized(call, free, 1, own=True)
            yield _resized(call, free, 2, own=False)


def _tried(
    model: nn.Module, call: Call, batch: int, exported: Exported, vary: Vary, own: bool
) -> tuple[dict[fx.Node, dict[int, Source]], tuple[str, ...]] | None:
    """Return what explains the graph at other sizes, and on what conditions; None if nothing."""
    exports, found = [exported], None
    for scale in (2, 3):
        exports.append(export_model(model, _resized(call, vary, scale, own), batch))
        found = _explained(exports)
        if found is None:
            return None
    return found


def _explained(
    exports: Sequence[Exported],
) -> tuple[dict[fx.Node, dict[int, Source]], tuple[str, ...]] | None:
    lists = [list(exported.graph.nodes) for exported in exports]
    if len({len(nodes) for nodes in lists}) > 1:
        return None
    place = [{node: i for i, node in enumerate(nodes)} for nodes in lists]
    replaced: dict[fx.Node, dict[int, Source]] = {}
    for nodes in zip(*lists, strict=True):
        if len({(node.op, str(node.target)) for node in nodes}) > 1:
            return None
        if nodes[0].op == "get_attr" and not _same_tensor(exports, str(nodes[0].target)):
            return None
        flat = [pytree.tree_flatten((list(node.args), dict(node.kwargs))) for node in nodes]
        if any(structure != flat[0][1] for _, structure in flat):
            return None
        for index, values in enumerate(zip(*(leaves for leaves, _ in flat), strict=True)):
            if isinstance(values[0], fx.Node):
                if len({place[i].get(v) for i, v in enumerate(values)}) > 1:
                    return None
            elif any(type(v) is not type(values[0]) or v != values[0] for v in values):
                source = _source(values, nodes, exports)
                if source is None:
                    return None
                replaced.setdefault(nodes[0], {})[index] = source
    conditions = _conditions(exports)
    return None if conditions is None else (replaced, conditions)


def _same_tensor(exports: Sequence[Exported], path: str) -> bool:
    """Whether a parameter, or a constant of the forward pass, is the same in all exports."""
    first, *others = (lookup_tensor(exported.tensors, path) for exported in exports)
    return all(
        a is first or (isinstance(a, Tensor) and a.shape == first.shape and torch.equal(a, first))
        for a in others
    )


# ---------------------------------------------------------------------- explaining a number


def _inputs(exported: Exported) -> list[fx.Node]:
    return [node for node in exported.graph.nodes if node.op == "placeholder"]


def _shapes(nodes: Sequence[fx.Node]) -> list[tuple[Any, ...]]:
    values = [node.meta.get("val") for node in nodes]
    return [tuple(v.shape) if isinstance(v, Tensor) else () for v in values]


def _dims_of(nodes: Sequence[fx.Node]) -> Iterator[tuple[tuple[int, ...], list[int]]]:
    """Yield runs of a tensor's dimensions, and their product in each export; short runs first."""
    shapes = _shapes(nodes)
    rank = len(shapes[0])
    for length in range(1, rank):
        for first in range(1, rank - length + 1):
            dims = tuple(range(first, first + length))
            if all(isinstance(shape[d], int) for shape in shapes for d in dims):
                yield dims, [prod(shape[d] for d in dims) for shape in shapes]


def _source(
    values: Sequence[Any], nodes: Sequence[fx.Node], exports: Sequence[Exported]
) -> Source | None:
    """Return of which tensor's dimensions the numbers are made, in all exports alike."""
    if not all(type(value) is int for value in values):
        return None
    tensors = [*zip(*map(_inputs, exports), strict=True)]
    tensors += [*zip(*(node.all_input_nodes for node in nodes), strict=True)]
    for added in (False, True):
        for same in tensors:
            for dims, sizes in _dims_of(same):
                rest = {value - size for value, size in zip(values, sizes, strict=True)}
                if len(rest) == 1 and len(set(sizes)) > 1 and (added or rest == {0}):
                    return Source(same[0], dims, rest.pop())
    return None


_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}
_SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}


def _conditions(exports: Sequence[Exported]) -> tuple[str, ...] | None:
    """Return what the model's code took for given of sizes; None if that cannot be said."""
    if len({len(exported.comparisons) for exported in exports}) > 1:
        return None
    found: dict[str, None] = {}
    for same in zip(*(exported.comparisons for exported in exports), strict=True):
        signs, left, right, truths = zip(*same, strict=True)
        if len(set(signs)) > 1 or len(set(truths)) > 1:
            return None
        sign = signs[0] if truths[0] else _OPPOSITE[signs[0]]
        if len(set(left)) == 1:
            left, right, sign = right, left, _SWAPPED[sign]
        if len(set(left)) == 1:
            continue
        name = _size_name(left, exports) if len(set(right)) == 1 else None
        if name is None:
            return None
        found[f"{name[0]} {sign} {right[0] - name[1]}"] = None
    return tuple(found)


def _size_name(values: Sequence[float], exports: Sequence[Exported]) -> tuple[str, int] | None:
    """Return the name of an input's dimension and what to add to it for these values."""
    for number, same in enumerate(zip(*map(_inputs, exports), strict=True)):
        for dims, sizes in _dims_of(same):
            rest = {value - size for value, size in zip(values, sizes, strict=True)}
            if len(dims) == 1 and len(rest) == 1 and len(set(sizes)) > 1:
                added = rest.pop()
                return (f"size_{number}_{dims[0]}", int(added)) if added == int(added) else None
    return None
