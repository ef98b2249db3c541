"""What one layer can be fitted to: residual blocks, and stretches with one way in and out.

Three rules find them, in this order. What a later one finds does not overlap with what an earlier
one found.

1. A residual block of convolutions (or of linear layers), its skip included, also where the
   shortcut changes the shape. The stretch ends at the addition, so a rectifier after it stays. It
   has the block's name (`layer1.4`).
2. A module with one or two rectifiers whose layers have one way in and one out, as an inverted
   residual without skip or the MLP of a transformer, whose skip stays outside. It has the module's
   path (`blocks.0.mlp`). Of nested modules the innermost counts; of modules that hold nothing else,
   the outermost gives the name.
3. A rectifier with a layer on each side, as the pairs of VGG. It has the paths of its first and
   last layer (`features.0..features.3`). Pairs may share a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx, nn

from shoal.network.blocks import Block
from shoal.network.flow import Flow
from shoal.network.layer_shape import MAX_COLUMNS, LayerShape
from shoal.network.reach import Reach, is_passed, reaches
from shoal.network.weights import is_weighted

__all__ = ["Stretch", "find_stretches", "with_kernel"]

_MODULE_RECTIFIERS = 2  # a module with more is several stretches in a row


@dataclass(frozen=True)
class Stretch:
    """A part of a network with one tensor in and one out, which one layer can be fitted to.

    Attributes:
        name: what `collapse_` takes; see this file's head.
        path: where the layer goes: "collapsed" below this path.
        kind: "conv" for images [N, C, H, W]; "linear" for features in the last dimension.
        start: the node whose value goes in.
        end: the node whose value is approximated.
        nodes: all nodes between, `end` included, in the order of the graph.
        layers: paths of the layers with weights.
        sites: names of the rectifier sites.
        shape: the layer to fit: channels, kernel, stride and padding.
        reach: what one output position reads of the input; None for "linear".
    """

    name: str
    path: str
    kind: Literal["conv", "linear"]
    start: fx.Node
    end: fx.Node
    nodes: tuple[fx.Node, ...]
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    shape: LayerShape
    reach: Reach | None


def find_stretches(
    flow: Flow, root: nn.Module, sites: Collection[str], blocks: Sequence[Block]
) -> list[Stretch]:
    """Return what can be collapsed, in the order of the forward pass.

    Stretches whose fit would need more than `MAX_COLUMNS` columns even with a 1×1 kernel are left
    out, and so are those whose output size no padding reproduces.
    """
    finder = _Finder(flow, root, sites)
    found = finder.of_blocks(blocks)
    found += finder.modules(_nodes_of(found))
    found += finder.pairs(_nodes_of(found))
    return sorted(found, key=lambda s: (flow.order[s.end], flow.order[s.start]))


def with_kernel(stretch: Stretch, kernel_size: int) -> Stretch | str:
    """Return the stretch with another kernel to fit, or one line on why that cannot be."""
    if kernel_size < 1:
        return f"kernel_size is {kernel_size}: give at least 1"
    if stretch.reach is None:
        return f"'{stretch.name}' becomes a linear layer, which has no kernel: omit kernel_size"
    shape = _conv_shape(stretch.start, stretch.end, stretch.reach, (kernel_size,) * 2, (1, 1))
    if shape is None:
        return (
            f"a {kernel_size}×{kernel_size} kernel cannot give '{stretch.name}' its output size: "
            f"its own kernel is {'×'.join(map(str, stretch.shape.kernel_size))}"
        )
    if shape.columns > MAX_COLUMNS:
        return (
            f"a {kernel_size}×{kernel_size} kernel has {shape.columns} weights per channel of "
            f"'{stretch.name}' and the fit takes up to {MAX_COLUMNS}: give a smaller kernel_size"
        )
    return replace(stretch, shape=shape)


def _nodes_of(stretches: Sequence[Stretch]) -> set[fx.Node]:
    return {node for stretch in stretches for node in stretch.nodes}


class _Finder:
    def __init__(self, flow: Flow, root: nn.Module, sites: Collection[str]) -> None:
        self.flow = flow
        self.root = root
        self.sites = sites
        self.nodes = [node for node in flow.order if flow.carries(node)]
        self.weighted = [node for node in self.nodes if is_weighted(node, root)]

    # ------------------------------------------------------------------ the three rules

    def of_blocks(self, blocks: Sequence[Block]) -> list[Stretch]:
        """Return the residual blocks."""
        found = (self._stretch(b.name, b.name, b.start, b.addition) for b in blocks)
        return [stretch for stretch in found if stretch is not None]

    def modules(self, taken: set[fx.Node]) -> list[Stretch]:
        """Return the innermost modules that are stretches and touch nothing that is taken."""
        found: list[Stretch] = []
        taken = set(taken)
        for path in self._module_paths():
            inside = [node for node in self.nodes if _below(node, path)]
            if taken & set(inside):
                continue
            ends = self._way_through(inside)
            name = self._outermost(path, inside)
            stretch = self._stretch(name, name, *ends) if ends is not None else None
            if stretch is not None and 1 <= self._rectifiers(stretch) <= _MODULE_RECTIFIERS:
                found.append(stretch)
                taken |= set(stretch.nodes)
        return found

    def pairs(self, taken: set[fx.Node]) -> Iterator[Stretch]:
        """Give the rectifiers with a layer on each side."""
        for node in self.nodes:
            if node.target not in self.sites or node in taken:
                continue
            first, last = self._layer_before(node), self._layer_after(node)
            if first is None or last is None or {first, last} & taken:
                continue
            start = next(n for n in first.all_input_nodes if self.flow.carries(n))
            layers = str(first.target), str(last.target)
            stretch = self._stretch(f"{layers[0]}..{layers[1]}", layers[0], start, self._tail(last))
            if stretch is not None:
                yield stretch

    # ------------------------------------------------------------------ where modules begin and end

    def _module_paths(self) -> list[str]:
        """Return the paths that hold layers with weights, innermost first."""
        paths = {
            ".".join(parts[:n])
            for parts in (str(node.meta.get("path", "")).split(".") for node in self.weighted)
            for n in range(1, len(parts))
        }
        return sorted(paths, key=lambda path: (-path.count("."), path))

    def _outermost(self, path: str, inside: Sequence[fx.Node]) -> str:
        """Return the path furthest up below which there is nothing else."""
        while "." in path:
            parent = path.rpartition(".")[0]
            if sum(_below(node, parent) for node in self.nodes) > len(inside):
                break
            path = parent
        return path

    def _way_through(self, inside: Sequence[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
        """Return the one tensor that goes in and the one that comes out before a last rectifier."""
        members = set(inside)
        sources = self.flow.sources(members)
        exits = [node for node in inside if not set(node.users) <= members]
        if len(sources) != 1 or len(exits) != 1:
            return None
        end = exits[0]
        while is_passed(end, self.root, self.sites) and end.all_input_nodes[0] in members:
            end = end.all_input_nodes[0]
        return sources.pop(), end

    def _rectifiers(self, stretch: Stretch) -> int:
        """Return the number of sites, those of gates that read the whole image left out."""
        kind = nn.Conv2d if stretch.kind == "conv" else nn.Linear
        reach = reaches(stretch.start, stretch.nodes, self.root, self.sites, kind) or {}
        local = {node.target for node in stretch.nodes if reach.get(node) is not None}
        return len(local & set(stretch.sites))

    def _layer_before(self, node: fx.Node) -> fx.Node | None:
        """Return the layer with weights whose output, normalised, is all that `node` reads."""
        source = node.all_input_nodes[0]
        while len(source.users) == 1 and self._is_norm_or_drop(source):
            source = source.all_input_nodes[0]
        alone = len(source.users) == 1 and source.op == "call_module"
        return source if alone and source in self.weighted else None

    def _layer_after(self, node: fx.Node) -> fx.Node | None:
        """Return the layer with weights that alone reads `node`."""
        while len(node.users) == 1:
            node = next(iter(node.users))
            if node in self.weighted:
                return node if node.op == "call_module" else None
            if not self._is_norm_or_drop(node):
                return None
        return None

    def _tail(self, node: fx.Node) -> fx.Node:
        """Return the batch norm after a layer, if that alone reads it, else the layer."""
        while len(node.users) == 1 and self._is_norm(next(iter(node.users))):
            node = next(iter(node.users))
        return node

    def _is_norm(self, node: fx.Node) -> bool:
        if node.op != "call_module":
            return False
        module = self.root.get_submodule(str(node.target))
        return isinstance(module, nn.modules.batchnorm._BatchNorm)

    def _is_norm_or_drop(self, node: fx.Node) -> bool:
        drops = is_passed(node, self.root, self.sites) and node.target not in self.sites
        return drops or self._is_norm(node)

    # ------------------------------------------------------------------ checking a candidate

    def _stretch(self, name: str, path: str, start: fx.Node, end: fx.Node) -> Stretch | None:
        """Return the stretch between two tensors, or None where there is none to fit."""
        inside = self.flow.between(start, end)
        layers = [node for node in inside if is_weighted(node, self.root)]
        if any(node.op != "call_module" for node in layers):
            return None  # its weight is computed in the forward pass
        kinds = {type(self.root.get_submodule(str(node.target))) for node in layers}
        if kinds not in ({nn.Conv2d}, {nn.Linear}) or not self._is_closed(start, end, inside):
            return None
        kind = kinds.pop()
        reach = reaches(start, inside, self.root, self.sites, kind)
        if reach is None:
            return None
        local = [node for node in layers if reach[node] is not None]
        shape = self._shape(start, end, reach[end], local, kind)
        if len(local) < 2 or shape is None:
            return None
        sites = [n for n in inside if n.target in self.sites]
        return Stretch(
            name=name,
            path=path,
            kind="conv" if kind is nn.Conv2d else "linear",
            start=start,
            end=end,
            nodes=inside,
            layers=tuple(str(node.target) for node in layers),
            sites=tuple(str(node.target) for node in sites),
            shape=shape,
            reach=reach[end] if kind is nn.Conv2d else None,
        )

    def _is_closed(self, start: fx.Node, end: fx.Node, inside: Sequence[fx.Node]) -> bool:
        """Whether nothing but `start` goes in and nothing but `end` comes out."""
        members = set(inside)
        if not set(self.flow.sources(members)) <= {start}:
            return False
        # What only reads a shape is dead with the stretch.
        return not any(self.flow.escapes(node, members) for node in inside if node is not end)

    def _shape(
        self,
        start: fx.Node,
        end: fx.Node,
        reach: Reach | None,
        layers: Sequence[fx.Node],
        kind: type[nn.Module],
    ) -> LayerShape | None:
        sizes = start.meta.get("shape"), end.meta.get("shape")
        if None in sizes or reach is None:
            return None
        if kind is nn.Linear:
            features = [size[-1] for size in sizes if size is not None]
            if len(set(map(len, sizes))) > 1 or None in features:  # type: ignore[arg-type]
                return None
            linear = LayerShape(*features)
            return linear if linear.columns <= MAX_COLUMNS else None
        largest = max(
            (self.root.get_submodule(str(node.target)) for node in layers),
            key=lambda conv: max(conv.kernel_size),  # type: ignore[arg-type]
            default=None,
        )
        if not isinstance(largest, nn.Conv2d):
            return None
        kernel, dilation = largest.kernel_size, largest.dilation
        wider = [tuple(k + 2 * n for k in kernel) for n in range(max(reach.kernel))]
        for size, spread in (*((k, dilation) for k in wider), ((1, 1), (1, 1))):
            shape = _conv_shape(start, end, reach, size, spread)
            if shape is not None and shape.columns <= MAX_COLUMNS:
                return shape
        return None


def _conv_shape(
    start: fx.Node, end: fx.Node, reach: Reach, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> LayerShape | None:
    """Return the convolution of that kernel that is centred as the stretch is, if there is one."""
    before, after = start.meta["shape"], end.meta["shape"]
    if len(before) != 4 or len(after) != 4 or None in (*before[1:], *after[1:]):
        return None
    padding = []
    for axis in range(2):
        extent = dilation[axis] * (kernel[axis] - 1) + 1
        twice = 2 * reach.padding[axis] - (reach.kernel[axis] - extent)
        stride = reach.stride[axis]
        for pad in dict.fromkeys((twice // 2, -(-twice // 2))):
            size = (before[2 + axis] + 2 * pad - extent) // stride + 1
            if pad >= 0 and size == after[2 + axis]:
                padding.append(pad)
                break
    if len(padding) < 2:
        return None
    return LayerShape(
        in_channels=before[1],
        out_channels=after[1],
        kernel_size=tuple(kernel),
        stride=tuple(reach.stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
    )


def _below(node: fx.Node, path: str) -> bool:
    own = str(node.meta.get("path", ""))
    return own == path or own.startswith(f"{path}.")
