"""An option is stated once; all that is derived from it follows the field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from shoal.errors import ConfigError, NameNotFoundError, OptionError, ShoalError
from shoal.options import (
    DataOptions,
    Options,
    Recipe,
    above,
    at_least,
    between,
    one_of,
    option,
    options_of,
    share_out,
)
from shoal.search.options import MachineOptions


@dataclass(frozen=True, kw_only=True)
class Folding(Options):
    threshold: float = option(0.9, "Fold above this.", check=between(0, 1, ends="(]"))
    steps: int | None = option(None, "At most.", unit="steps", check=at_least(1))
    how: str = option("line", "What stays.", check=one_of("line", "identity"))
    milestones: tuple[float, ...] = option((), "When.", check=above(0))
    quick: bool = option(False, "Sooner.", decides=False)


def test_values_come_back_from_json_values():
    made = Folding(threshold=1, milestones=[0.5, 1])  # type: ignore[arg-type]
    assert made.threshold == 1.0
    assert isinstance(made.threshold, float)
    assert made.milestones == (0.5, 1.0)
    assert Folding.from_dict(made.to_dict()) == made


def test_numbers_and_texts_of_numpy_become_plain_ones():
    """Files hold plain values alone, and are refused if they hold others."""
    given = {"threshold": np.float64(0.5), "how": np.str_("line"), "milestones": np.array([0.5])}
    made = Folding(**given, steps=np.int64(3))  # type: ignore[arg-type]
    assert (type(made.threshold), type(made.how), type(made.milestones[0])) == (float, str, float)
    assert type(made.steps) is int
    assert made == Folding(threshold=0.5, milestones=(0.5,), steps=3)
    narrow = Folding(threshold=np.float32(0.5), milestones=np.ones(1, np.float32))  # type: ignore[arg-type]
    assert narrow == Folding(threshold=0.5, milestones=(1.0,))
    for wrong in (np.bool_(True), np.float64(3.0), np.array([3])):
        with pytest.raises(OptionError, match="give a whole number"):
            Folding(steps=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="give a number"):
        Folding(threshold=10**400)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 0}, "threshold is 0.0: give a number, above 0 to 1"),
        ({"threshold": float("nan")}, "threshold is nan: give a number"),
        ({"threshold": True}, "threshold is True: give a number"),
        ({"threshold": "0.5"}, "threshold is '0.5': give a number"),
        ({"steps": 0}, "steps is 0: give a whole number of steps, 1 or more"),
        ({"steps": 1.5}, "steps is 1.5: give a whole number"),
        ({"how": "lines"}, "how is 'lines': give one of line, identity"),
        ({"milestones": 0.5}, "milestones is 0.5: give a list of numbers"),
        ({"milestones": "0.5"}, "milestones is '0.5': give a list of numbers"),
        ({"milestones": (0.5, -1)}, "milestones is -1.0: give a number, above 0"),
        ({"quick": 1}, "quick is 1: give true or false"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_what_to_give(values, message):
    with pytest.raises(OptionError) as caught:
        Folding(**values)
    assert str(caught.value).startswith(message)
    assert caught.value.option == next(iter(values))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, ShoalError)


def test_none_is_a_value_where_the_type_says_so():
    assert Folding(steps=None).steps is None
    with pytest.raises(OptionError):
        Folding(threshold=None)  # type: ignore[arg-type]


def test_everything_about_an_option_stands_at_its_field():
    named = {known.name: known for known in options_of(Folding)}
    assert list(named) == ["threshold", "steps", "how", "milestones", "quick"]
    assert (named["steps"].kind, named["steps"].optional, named["steps"].unit) == (
        int,
        True,
        "steps",
    )
    assert (named["milestones"].kind, named["milestones"].of) == (tuple, float)
    assert named["how"].check is not None
    assert named["how"].check.choices == ("line", "identity")
    assert named["threshold"].help == "Fold above this."


def test_memory_that_changes_how_images_are_cut_is_in_the_identity():
    usual, other = DataOptions(), DataOptions(max_memory_gib=0.5)
    assert other.identity() == {**usual.identity(), "max_memory_gib": 0.5}
    assert "max_memory_gib" not in usual.identity()  # as in runs of earlier versions


def test_only_what_decides_is_a_runs_identity():
    assert Folding(quick=True).identity() == Folding().identity()
    assert "threshold" in Folding().identity()


def test_unknown_options_are_answered_with_the_nearest():
    with pytest.raises(NameNotFoundError, match="'threshold'"):
        Folding.from_dict({"treshold": 0.5})


def test_flat_values_are_shared_out():
    @dataclass(frozen=True, kw_only=True)
    class Other(Options):
        how: str = option("all", "Another.")
        rate: float = option(0.1, "A rate.")

    assert share_out({"how": "line", "rate": 1.0}, Folding, Other) == (
        {"how": "line"},
        {"how": "line", "rate": 1.0},
    )
    with pytest.raises(NameNotFoundError, match="'rate'"):
        share_out({"rote": 1.0}, Folding, Other)


def test_an_option_needs_a_default_and_a_plain_type():
    @dataclass(frozen=True, kw_only=True)
    class Odd(Options):
        what: dict = option(None, "No plain type.")  # type: ignore[type-arg]

    with pytest.raises(ConfigError, match="what"):
        options_of(Odd)


@pytest.mark.parametrize(("read", "meant"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_on_and_off_are_words_that_yaml_takes_for_true_and_false(read, meant):
    assert Recipe.from_dict({"compile_training": read}).compile_training == meant


def test_several_whole_numbers_are_a_list():
    assert MachineOptions.from_dict({"latency_batch": [1, 64]}).latency_batch == (1, 64)
    with pytest.raises(OptionError, match="or several as a list, such as"):
        MachineOptions.from_dict({"latency_batch": "1,64"})
