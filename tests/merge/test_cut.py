"""The best cut is the cheapest of all cuts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import reduce

import pytest
import torch
from torch import fx

from shoal.merge.algebra import then
from shoal.merge.conv_map import ConvMap
from shoal.merge.cut import Prices, best_cut, cheapest
from shoal.merge.linear_ops import Linear

Cut = tuple[tuple[int, int], ...]


def all_cuts(n: int) -> Iterator[Cut]:
    """Every way to cut n units into runs."""
    for inner in itertools.product([False, True], repeat=n - 1):
        places = [0, *(i + 1 for i, cut in enumerate(inner) if cut), n]
        yield tuple(itertools.pairwise(places))


@pytest.mark.parametrize("n", range(1, 7))
def test_the_recurrence_finds_the_cheapest_of_all_cuts(n: int) -> None:
    for seed in range(60):
        draw = random.Random(seed)
        price = {
            (i, j): draw.random() * (j - i) ** draw.choice([0, 1, 2])
            for i in range(n)
            for j in range(i + 1, n + 1)
            if j == i + 1 or draw.random() < 0.7
        }
        found = cheapest(n, lambda i, j, p=price: (p[i, j], (i, j)) if (i, j) in p else None)
        possible = [cut for cut in all_cuts(n) if all(run in price for run in cut)]
        assert tuple(found) in possible
        cost = {cut: sum(price[run] for run in cut) for cut in possible}
        assert cost[tuple(found)] == pytest.approx(min(cost.values()), rel=1e-12)


def chain_of(maps: list[ConvMap]) -> tuple[list[Linear], list[fx.Node]]:
    """A chain of weighted layers, one after the other."""
    graph = fx.Graph()
    nodes = [graph.placeholder("x")]
    layers = []
    for i, conv in enumerate(maps):
        node = graph.call_module(f"layer{i}", (nodes[-1],))
        node.meta["shape"] = (None, conv.channels_out, *[9] * conv.spatial)
        layers.append(Linear(node, nodes[-1], None, lambda conv=conv: conv, True))
        nodes.append(node)
    nodes[0].meta["shape"] = (None, maps[0].channels_in, *[9] * maps[0].spatial)
    return layers, nodes


def random_maps(draw: random.Random, n: int) -> list[ConvMap]:
    """Convolutions in a row; some pad, and so cannot be joined with what comes before."""
    torch.manual_seed(draw.randrange(10**6))
    sizes = [draw.choice([2, 3, 5]) for _ in range(n + 1)]
    maps = []
    for inner, outer in itertools.pairwise(sizes):
        kernel, padding = draw.choice([(1, 0), (1, 0), (3, 0), (3, 1)])
        weight = torch.randn(outer, inner, kernel, dtype=torch.float64)
        bias = torch.randn(outer, dtype=torch.float64)
        maps.append(ConvMap(weight, bias, (1,), (padding,), (1,), 1))
    return maps


def joined(maps: list[ConvMap]) -> ConvMap | None:
    """What may become one layer: exact, from the front or, for three and more, from the back."""
    for order in (
        lambda: reduce(then, maps),
        lambda: reduce(lambda b, a: then(a, b), reversed(maps)),
    ):
        try:
            return order()
        except Exception:
            continue
    return None


@pytest.mark.parametrize("n", range(1, 7))
def test_the_best_cut_of_layers_costs_no_more_than_any_other(n: int) -> None:
    for seed in range(12):
        draw = random.Random(100 * n + seed)
        maps = random_maps(draw, n)
        chain, nodes = chain_of(maps)
        made_up: dict[tuple[object, ...], float] = {}

        def price(conv: ConvMap, node: fx.Node, draw=draw, made_up=made_up) -> float:
            key = (node.name, tuple(conv.weight.shape), conv.padding, conv.ones)
            return made_up.setdefault(key, draw.uniform(1.0, 1.5))

        prices = Prices(price, most_work=float("inf"), margin=0.9)
        segments = best_cut(chain, prices)
        place = {node: i for i, node in enumerate(nodes)}
        found = tuple((place[s.start], place[s.end]) for s in segments)
        cost = {}
        for cut in all_cuts(n):
            runs = [joined(maps[i:j]) for i, j in cut]
            if all(run is not None for run in runs):
                cost[cut] = sum(
                    price(run, nodes[i]) / (0.9 if j > i + 1 else 1.0)
                    for run, (i, j) in zip(runs, cut, strict=True)
                    if run is not None
                )
        assert found in cost
        # A composed layer never counts more than a part that does all its work: no more than this.
        assert cost_of(segments, price) <= min(cost.values()) * (1 + 1e-12)


def cost_of(segments: list, price) -> float:
    """What the cut itself reckons."""
    return sum(s.cost / 0.9 if s.cost is not None else price(s.map, s.start) for s in segments)


def test_what_is_too_much_work_or_not_to_be_joined_stays_apart() -> None:
    maps = random_maps(random.Random(0), 1) * 1
    pointwise = [
        ConvMap(torch.randn(8, 2, 1).double(), torch.zeros(8).double(), (1,), (0,), (1,), 1),
        ConvMap(torch.randn(2, 8, 1).double(), torch.zeros(2).double(), (1,), (0,), (1,), 1),
    ]
    chain, _ = chain_of(pointwise)
    assert len(maps) == 1
    assert len(best_cut(chain, Prices(lambda conv, node: 1.0))) == 1
    assert len(best_cut(chain, Prices(lambda conv, node: 1.0, joins=False))) == 2
    assert len(best_cut(chain, Prices(lambda conv, node: 1.0, most_work=0.01))) == 2
