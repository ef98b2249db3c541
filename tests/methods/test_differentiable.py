"""EASIER with the entropy in the loss: its steps without a weight, lower entropies with one."""

from __future__ import annotations

from statistics import fmean

import pytest

import shoal
from shoal.errors import ConfigError
from small_runs import captured, digits, facts, run, same_weights


def test_weight_0_gives_easiers_very_steps() -> None:
    plain, pushed = run(remove=3), run(method="differentiable", entropy_weight=0.0, remove=3)
    assert facts(pushed) == facts(plain)
    assert same_weights(pushed.model, plain.model)


def test_it_lowers_the_entropy_of_the_sites_that_are_left() -> None:
    options = {"epochs": 3, "remove": 1, "move_padding": False}
    plain = run(**options).model
    pushed = run(method="differentiable", entropy_weight=2.0, **options).model
    entropies = [fmean(shoal.score(net, digits().train).values()) for net in (plain, pushed)]
    assert entropies[1] < 0.8 * entropies[0]


def test_the_lowest_alone_are_pushed() -> None:
    options = {"method": "differentiable", "entropy_weight": 2.0, "remove": 1, "epochs": 2}
    all_sites, one = run(**options).model, run(push=1, **options).model
    dense = shoal.score(captured(), digits().train)
    nearest = dense.lowest(2)[1]  # the lowest goes, this one is next
    scores = [shoal.score(net, digits().train) for net in (all_sites, one)]
    assert scores[1][nearest] < scores[0][nearest] < dense[nearest]


def test_wrong_options_are_one_line() -> None:
    with pytest.raises(ConfigError, match="tau is 0"):
        run(method="differentiable", tau=0.0)
