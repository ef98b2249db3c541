"""The controls do what EASIER and layer pruning do, and choose by nothing that knows the task."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest

import shoal
import small_runs
from small_chain import chain
from small_runs import SITES, facts, removals, run


@pytest.mark.parametrize(("method", "criterion"), [("random", "random"), ("magnitude", "l1")])
def test_only_the_choice_differs(method: str, criterion: str) -> None:
    for place, like in (("site", "easier"), ("block", "layer_pruning")):
        control = run(method=method, place=place, seed=3, remove=2)
        assert facts(control) == facts(run(method=like, criterion=criterion, seed=3, remove=2))


def test_chance_follows_from_the_seed() -> None:
    options: dict[str, Any] = {"method": "random", "epochs": 0}
    orders = [removals(run(seed=seed, **options)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert {name for (name,) in orders[0]} == set(SITES)


def test_the_magnitude_of_a_site_is_that_of_the_layer_before_it() -> None:
    network = chain()
    scores = shoal.score(network, [], "site_l1?scope=global")
    mean = network.get_parameter("three.conv2.weight").abs().mean()
    assert scores["three.relu_1"] == pytest.approx(mean.item(), rel=1e-6)
    assert set(scores) == {site.name for site in network.sites}
    relative = shoal.score(network, [], "site_l1")
    assert fmean(relative.values()) == pytest.approx(1.0)  # all have one shape


def test_layers_of_smaller_weights_go_first() -> None:
    net = small_runs.captured().copy()
    net.get_parameter("conv3.weight").data.mul_(0.01)
    result = run(model=net, method="magnitude", remove=1, epochs=0)
    assert removals(result) == [("relu_1",)]
