"""Flat values become one object for each concern, each value checked once."""

from __future__ import annotations

import pytest

import shoal.methods  # noqa: F401  registers them
from shoal.errors import ConfigError, NameNotFoundError, OptionError
from shoal.search.settings import Settings

METHODS = ["easier", "layer_pruning", "shoal"]


@pytest.mark.parametrize("method", METHODS)
def test_all_values_are_the_way_back(method: str) -> None:
    settings = Settings.of(method, epochs=3, lr=0.3, latency_batch=2)
    assert Settings.of(**settings.to_dict()) == settings


def test_options_may_follow_the_name_and_keywords_win() -> None:
    assert Settings.of("easier?how=identity&per_step=2").options.per_step == 2
    assert Settings.of("easier?how=identity", how="line").options.how == "line"


def test_a_recipe_is_a_name_with_single_values_over_it() -> None:
    assert Settings.of("easier", "vit").recipe.optimizer == "adamw"
    assert Settings.of("easier", "vit", lr=0.5).recipe.lr == 0.5
    assert Settings.of("shoal", {"lr": 0.5}).recipe.distill == 0.7


def test_what_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'easier' has no option keep_first.*'layer_pruning'"):
        Settings.of("easier", keep_first=True)
    with pytest.raises(NameNotFoundError, match="'epochs'"):
        Settings.of("easier", epohcs=1)
    with pytest.raises(OptionError, match="max_drop is -1"):
        Settings.of("easier", max_drop=-1)


def test_only_what_decides_is_the_identity() -> None:
    first, second = Settings.of("easier", device="cpu"), Settings.of("easier")
    assert first.identity() == second.identity()
    assert Settings.of("easier", seed=1).identity() != second.identity()
