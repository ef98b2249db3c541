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

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import fx, nn

from shoal.network.blocks import Block
from shoal.network.flow import Flow, is_weighted
from shoal.network.reach import (
    MAX_COLUMNS,
    LayerShape,
    Reach,
    conv_shape,
    is_norm,
    is_passed,
    reaches,
)  # fmt: skip

_MODULE_RECTIFIERS = 2  # a module with more is several stretches in a row


@dataclass(frozen=True)
class Stretch:
    """A part of a network with one tensor in and one out, which one layer can be fitted to."""

    name: str  # what `collapse_` takes; see this file's head
    path: str  # the layer goes to "collapsed" below it
    kind: Literal["conv", "linear"]  # images [N, C, H, W], or features in the last dimension
    start: fx.Node  # whose value goes in
    end: fx.Node  # whose value is approximated
    nodes: tuple[fx.Node, ...]  # all between, `end` included, in the order of the graph
    layers: tuple[str, ...]  # paths of the layers with weights
    sites: tuple[str, ...]  # names of the rectifier sites
    shape: LayerShape  # the layer to fit: channels, kernel, stride and padding
    reach: Reach | None  # what one output position reads of the input; None for "linear"


def find_stretches(
    flow: Flow, root: nn.Module, sites: Collection[str], blocks: Iterable[Block]
) -> dict[str, Stretch]:
    """Return what can be collapsed by name, in the order of the forward pass.

    What needs more than `MAX_COLUMNS` columns even with a 1×1 kernel is left out, and so is what
    no padding gives its output size.
    """
    finder = _Finder(flow, root, sites)
    found = [*filter(None, (finder.stretch(b.name, b.start, b.addition) for b in blocks))]
    found += finder.modules({node for stretch in found for node in stretch.nodes})
    found += finder.pairs({node for stretch in found for node in stretch.nodes})
    found.sort(key=lambda stretch: (flow.order[stretch.end], flow.order[stretch.start]))
    return {stretch.name: stretch for stretch in found}


def with_kernel(stretch: Stretch, kernel_size: int) -> Stretch | str:
    """Return the stretch with another kernel to fit, or one line on why that cannot be."""
    if kernel_size < 1:
        return f"kernel_size is {kernel_size}: give at least 1"
    if stretch.reach is None:
        return f"'{stretch.name}' becomes a linear layer, which has no kernel: omit kernel_size"
    shape = conv_shape(stretch.start, stretch.end, stretch.reach, (kernel_size,) * 2, (1, 1))
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


class _Finder:
    def __init__(self, flow: Flow, root: nn.Module, sites: Collection[str]) -> None:
        self.flow = flow
        self.root = root
        self.sites = sites
        self.nodes = [node for node in flow.order if flow.carries(node)]
        self.weighted = [node for node in self.nodes if is_weighted(node, root)]

    def modules(self, taken: set[fx.Node]) -> list[Stretch]:
        """Return the innermost modules that are stretches and touch nothing that is taken."""
        found: list[Stretch] = []
        for path in self._module_paths():
            inside = [node for node in self.nodes if _below(node, path)]
            ends = None if taken & set(inside) else self._way_through(inside)
            if ends is None:
                continue
            stretch = self.stretch(self._outermost(path, inside), *ends)
            if stretch is not None and 1 <= self._rectifiers(stretch) <= _MODULE_RECTIFIERS:
                found.append(stretch)
                taken = taken | set(stretch.nodes)
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
            end = last
            while len(end.users) == 1 and is_norm(next(iter(end.users)), self.root):
                end = next(iter(end.users))
            stretch = self.stretch(f"{first.target}..{last.target}", start, end, str(first.target))
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

    def _is_norm_or_drop(self, node: fx.Node) -> bool:
        passed = is_passed(node, self.root, self.sites) and node.target not in self.sites
        return passed or is_norm(node, self.root)

    # ------------------------------------------------------------------ checking a candidate

    def stretch(
        self, name: str, start: fx.Node, end: fx.Node, path: str | None = None
    ) -> Stretch | None:
        """Return the stretch between two tensors, or None where there is none to fit."""
        inside = self.flow.between(start, end)
        layers = [node for node in inside if is_weighted(node, self.root)]
        if any(node.op != "call_module" for node in layers):
            return None  # its weight is computed in the forward pass
        modules = {node: self.root.get_submodule(str(node.target)) for node in layers}
        kinds = set(map(type, modules.values()))
        members = set(inside)
        if kinds not in ({nn.Conv2d}, {nn.Linear}) or {*self.flow.sources(members)} - {start}:
            return None
        # What only reads a shape is dead with the stretch.
        if any(self.flow.escapes(node, members) for node in inside if node is not end):
            return None
        kind = kinds.pop()
        reach = reaches(start, inside, self.root, self.sites, kind)
        local = [modules[node] for node in layers if reach and reach[node] is not None]
        if reach is None or len(local) < 2 or "shape" not in start.meta or "shape" not in end.meta:
            return None
        shape = _layer_shape(start, end, reach[end], local)
        if shape is None:
            return None
        image = kind is nn.Conv2d
        paths = tuple(str(node.target) for node in layers)
        rectifiers = tuple(str(node.target) for node in inside if node.target in self.sites)
        return Stretch(
            name, path or name, "conv" if image else "linear", start, end, inside,
            paths, rectifiers, shape, reach[end] if image else None,
        )  # fmt: skip


def _layer_shape(
    start: fx.Node, end: fx.Node, reach: Reach | None, layers: Sequence[Any]
) -> LayerShape | None:
    """Return the layer that sees what the local layers of a stretch see together, if one does."""
    if reach is None:
        return None
    candidates: Iterable[LayerShape | None]
    if isinstance(layers[0], nn.Linear):
        before, after = start.meta["shape"], end.meta["shape"]  # one vector of each position
        known = before[:-1] == after[:-1] and None not in (before[-1], after[-1])
        candidates = [LayerShape(before[-1], after[-1]) if known else None]
    else:
        largest = max(layers, key=lambda conv: max(conv.kernel_size))
        # An even kernel where layers with even ones decide the output's size.
        steps = (*range(0, 2 * max(reach.kernel), 2), *range(1, 2 * max(reach.kernel), 2))
        wider = (tuple(k + n for k in largest.kernel_size) for n in steps)
        sizes = (*((kernel, largest.dilation) for kernel in wider), ((1, 1), (1, 1)))
        candidates = (conv_shape(start, end, reach, *size) for size in sizes)
    fitting = (shape for shape in candidates if shape and shape.columns <= MAX_COLUMNS)
    return next(fitting, None)


def _below(node: fx.Node, path: str) -> bool:
    own = str(node.meta.get("path", ""))
    return own == path or own.startswith(f"{path}.")
