"""Flat values become one object for each concern, each value checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

import shoal
import shoal.methods  # registers them
from shoal.errors import ConfigError, NameNotFoundError, OptionError
from shoal.options.task import TaskOptions
from shoal.search.settings import Settings, task_of_run
from shoal.tasks import find_task, tasks

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


@pytest.mark.parametrize("recipe", [5, 0, ["vit"]])
def test_a_recipe_that_is_none_is_refused(recipe: Any) -> None:
    with pytest.raises(ConfigError, match=r"recipe is a (int|list): give a Recipe, its name"):
        Settings.of("easier", recipe)


def test_a_runs_own_task_keeps_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_entries", dict(tasks._entries))

    @shoal.register_task("near")
    class Near(type(find_task("classify"))):  # type: ignore[misc]
        @dataclass(frozen=True, kw_only=True)
        class Options(TaskOptions):
            within: int = shoal.option(1, "So many classes off are right.")

    run = Settings.of("easier", task="near?within=3", output_index=1).to_dict()
    found = task_of_run(run)
    assert isinstance(found, Near)
    assert (found.options.within, found.options.output_index) == (3, 1)
    assert task_of_run({"task": "near"}).options.within == 1
    segment = Settings.of("easier", task="segment", ignore_index=7).identity()
    assert task_of_run(segment) == find_task("segment?ignore_index=7")


def test_only_what_decides_is_the_identity() -> None:
    first, second = Settings.of("easier", device="cpu"), Settings.of("easier")
    assert first.identity() == second.identity()
    assert Settings.of("easier", seed=1).identity() != second.identity()
