"""Move padding from a convolution to the one before it, so that the two can become one.

A convolution that pads its input cannot be composed with a convolution before it: it reads zeros
where the composed layer would read what the first one computes outside the image. If the first one
computes those positions, by s·p more padding (s its stride, p the second one's padding), and the
second one pads no more, the two compose exactly. The network then gives other values at the borders
of the image, so this is done before fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from shoal.errors import PlanError
from shoal.merge.conv_map import conv_padding
from shoal.merge.cut import Prices, best_cut
from shoal.merge.linear_ops import linear_map
from shoal.merge.peephole import simplify_
from shoal.merge.prices import LatencyCosts
from shoal.merge.regions import Element, Layer, Region, find_regions
from shoal.modes import device_of
from shoal.network import Network
from shoal.network.rewrite import between
from shoal.runtimes import EAGER

__all__ = ["find_movable_paddings", "move_paddings_"]

_WORTH = 0.8  # one layer over two, in latency: borders change and work grows, so not for a trifle

Pair = tuple[str, str]  # paths of two convolutions, one after the other


def find_movable_paddings(network: Network, *, batch: int = 1, runtime: str = EAGER) -> list[Pair]:
    """Return the pairs of convolutions that a merge would join if the padding were moved.

    Args:
        network: the captured network; it is left as it is.
        batch: batch size at which measured latency decides what a merge would join.
        runtime: where it is measured, "eager" or "onnxruntime".

    Returns:
        The paths of the first and the second convolution of each pair.
    """
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    costs = LatencyCosts(batch, device_of(network), dtype, runtime)
    prices = Prices(costs.map_ms, margin=_WORTH)
    moved = network.copy().eval()
    simplify_(moved)
    found: list[Pair] = []
    for pair in [pair for region in find_regions(moved) for pair in _pairs(moved, region.chain)]:
        trial = moved.copy()
        move_padding_(trial, *pair)
        if _joined(trial, pair, prices):
            found.append(pair)
            moved = trial
    costs.save()
    return found


def move_paddings_(network: Network, pairs: Sequence[Sequence[str]]) -> Network:
    """Let the first convolution of each pair pad for the second one, in place; recorded.

    Args:
        network: changed in place; the borders of what it computes change.
        pairs: as `find_movable_paddings` gives them.

    Returns:
        The network itself.

    Raises:
        PlanError: the network has no such pair.
    """
    for first, second in pairs:
        known = [p for region in find_regions(network) for p in _pairs(network, region.chain)]
        if (first, second) not in known:
            raise PlanError(
                f"'{first}' and '{second}' are no convolutions in a row whose padding can be moved"
            )
        move_padding_(network, first, second)
        network.plan.record("pad", (first, second))
    return network


# ---------------------------------------------------------------------- pairs


def _pairs(network: Network, chain: Sequence[Element]) -> Iterator[Pair]:
    """Give the neighbouring convolutions of a chain whose second one pads."""
    last: Layer | None = None
    for element in chain:
        if not isinstance(element, Layer):
            yield from _pairs(network, element.first)
            yield from _pairs(network, element.second)
            last = None
        elif element.weighted:
            if last is not None and _fits(network, last, element):
                yield str(last.node.target), str(element.node.target)
            last = element
        elif element.make is None or not element.make().is_affine:
            last = None  # what comes between would change the size of what is padded


def _fits(network: Network, first: Layer, second: Layer) -> bool:
    before, after = _padding(network, first.node), _padding(network, second.node)
    return before is not None and after is not None and len(before) == len(after) and any(after)


def _padding(network: Network, node: fx.Node) -> tuple[int, ...] | None:
    """Return a convolution's padding; None for what is none, or is called more than once."""
    if node.op != "call_module":
        return None
    module = network.get_submodule(str(node.target))
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    calls = [n for n in network.graph.nodes if n.op == "call_module" and n.target == node.target]
    return conv_padding(module) if len(calls) == 1 else None


def _joined(network: Network, pair: Pair, prices: Prices) -> bool:
    """Whether the best cut of the pair's region puts both into one layer."""
    nodes = {str(n.target): n for n in network.graph.nodes if n.op == "call_module"}
    first, second = (nodes[path] for path in pair)
    region = next(r for r in find_regions(network) if second in _inside(r))
    waiting = list(best_cut(region.chain, prices))
    while waiting:
        segment = waiting.pop()
        if segment.map is None:
            waiting.extend(s for branch in segment.branches for s in branch)
        elif {first, second} <= between(segment.start, segment.end):
            return True
    return False


def _inside(region: Region) -> set[fx.Node]:
    return between(region.start, region.end)


def move_padding_(network: Network, first: str, second: str) -> None:
    """Let one convolution pad for the next one, in place; not recorded."""
    nodes = {str(n.target): n for n in network.graph.nodes if n.op == "call_module"}
    if first not in nodes or second not in nodes:
        raise PlanError(f"the plan moves a padding from '{second}', which is not there")
    read = nodes[second].all_input_nodes[0]
    if not all(_scales(node, network) for node in between(nodes[first], read)):
        raise PlanError(f"the plan moves a padding to '{first}', which is not right before")
    earlier, later = network.get_submodule(first), network.get_submodule(second)
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d
    if not isinstance(earlier, kinds) or not isinstance(later, kinds):
        raise PlanError(f"the plan moves a padding from '{second}', which is no convolution")
    before, after = conv_padding(earlier), conv_padding(later)
    if before is None or after is None:
        raise PlanError(f"the plan moves a padding from '{second}', which pads by no zeros")
    more = [s * p for s, p in zip(earlier.stride, after, strict=True)]
    _set_padding(earlier, [p + m for p, m in zip(before, more, strict=True)])
    _set_padding(later, [0] * len(after))
    network.changed()
    for node in {*between(nodes[first], read), nodes[first]}:
        shape = node.meta.get("shape")
        if shape is not None and len(shape) == len(after) + 2:
            grown = [n if n is None else n + 2 * p for n, p in zip(shape[2:], after, strict=True)]
            node.meta["shape"] = (*shape[:2], *grown)


def _scales(node: fx.Node, network: Network) -> bool:
    found = linear_map(node, network)
    if found is None:
        return False
    return found.layout is None or (found.make is not None and found.make().is_affine)


def _set_padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, padding: Sequence[int]) -> None:
    layer.padding = tuple(padding)
    layer._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]
