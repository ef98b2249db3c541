"""Move padding from a convolution to the one before it, so that the two can become one.

A convolution that pads its input cannot be composed with a convolution before it: it reads zeros
where the composed layer would read what the first one computes outside the image. If the first one
computes those positions, by s·p more padding (s its stride, p the second one's padding), and the
second one pads no more, the two compose exactly. The network then gives other values at the borders
of the image, so this is done before fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import fx, nn

from shoal.errors import PlanError
from shoal.measure import Batches, Runtimes, deployments
from shoal.merge.conv_map import Conv, conv_padding
from shoal.merge.cut import LayerCosts, Prices, best_cut
from shoal.merge.peephole import simplify_
from shoal.merge.regions import Element, Sum, find_regions
from shoal.network import Network
from shoal.network.rewrite import between
from shoal.runtimes import EAGER

_WORTH = 0.8  # one layer over two, in latency: borders change and work grows, so not for a trifle

Pair = tuple[str, str]  # paths of two convolutions, one after the other


def find_movable_paddings(
    network: Network, *, batch: Batches = 1, runtime: Runtimes = EAGER
) -> list[Pair]:
    """Return the pairs of convolutions that a merge would join if the padding were moved.

    Latency decides, in each runtime at each batch size, as in `merge_`; once the machine is too
    busy to tell, no more pairs are found.
    """
    costs = LayerCosts(network, deployments(runtime, batch))
    prices = costs.prices(margin=_WORTH)
    moved = network.copy().eval()
    simplify_(moved)
    found: list[Pair] = []
    for pair in _all_pairs(moved):
        trial = moved.copy()
        _move(trial, *pair)
        joined = _joined(trial, pair, prices)
        if costs.doubt:
            break
        if joined:
            found.append(pair)
            moved = trial
    costs.save()
    return found


def move_paddings_(network: Network, pairs: Sequence[Sequence[str]]) -> Network:
    """Let the first convolution of each pair pad for the second one, in place; recorded.

    The borders of what the network computes change. Raises `PlanError` if it has no such pair.
    """
    for first, second in pairs:
        if (first, second) not in _all_pairs(network):
            raise PlanError(
                f"'{first}' and '{second}' are not consecutive convolutions whose padding can move"
            )
        _move(network, first, second)
        network.plan.record("pad", (first, second))
    return network


# ---------------------------------------------------------------------- pairs


def _all_pairs(network: Network) -> list[Pair]:
    return [pair for region in find_regions(network) for pair in _pairs(network, region.chain)]


def _pairs(network: Network, chain: Sequence[Element]) -> Iterator[Pair]:
    """Give the neighbouring convolutions of a chain whose second one pads."""
    last: fx.Node | None = None
    for element in chain:
        if isinstance(element, Sum):
            yield from _pairs(network, element.first)
            yield from _pairs(network, element.second)
            last = None
        elif element.weighted:
            if last is not None:
                paddings = [p for node in (last, element.node) for _, p in _conv(network, node)]
                if len(paddings) == 2 and len(paddings[0]) == len(paddings[1]) and any(paddings[1]):
                    yield str(last.target), str(element.node.target)
            last = element.node
        elif element.make is None or not element.make().is_affine:
            last = None  # what comes between would change the size of what is padded


def _conv(network: Network, node: fx.Node) -> list[tuple[Conv, tuple[int, ...]]]:
    """Return a convolution and its padding; nothing for another layer, or one called twice."""
    calls = [n for n in network.graph.nodes if n.op == "call_module" and n.target == node.target]
    module = network.get_submodule(str(node.target)) if calls == [node] else None
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return []
    padding = conv_padding(module)
    return [] if padding is None else [(module, padding)]


def _joined(network: Network, pair: Pair, prices: Prices) -> bool:
    """Whether the best cut of the pair's region puts both into one layer."""
    first, second = map(network.node_of, pair)
    region = next(r for r in find_regions(network) if second in between(r.start, r.end))
    waiting = list(best_cut(region.chain, prices))
    while waiting:
        segment = waiting.pop()
        if segment.map is None:
            waiting.extend(s for branch in segment.branches for s in branch)
        elif {first, second} <= between(segment.start, segment.end):
            return True
    return False


def _move(network: Network, first: str, second: str) -> None:
    """Let one convolution pad for the next one, in place; what lies between keeps up."""
    start, end = network.node_of(first), network.node_of(second)
    (earlier, before), (later, after) = _conv(network, start) + _conv(network, end)
    read = end.all_input_nodes[0]
    more = [p + s * q for p, s, q in zip(before, earlier.stride, after, strict=True)]
    _set_padding(earlier, more)
    _set_padding(later, [0] * len(after))
    network.changed()
    for node in {*between(start, read), start}:
        shape = node.meta.get("shape")
        if shape is not None and len(shape) == len(after) + 2:
            grown = [n if n is None else n + 2 * p for n, p in zip(shape[2:], after, strict=True)]
            node.meta["shape"] = (*shape[:2], *grown)


def _set_padding(layer: Conv, padding: Sequence[int]) -> None:
    layer.padding = tuple(padding)
    layer._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]
