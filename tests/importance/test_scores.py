"""Scores are a mapping from names to numbers, and JSON."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping

import pytest

from shoal.errors import ConfigError, NameNotFoundError
from shoal.importance import Scores, criteria
from shoal.importance.criteria import make_criterion

VALUES = {"b": 0.5, "a": 0.25, "c": 0.25}


def make_scores() -> Scores:
    return Scores(
        "entropy", VALUES, 10, {"b": 0.1, "a": 0.0, "c": 0.2}, False, {"a": {"on": 0.5}}, "bits"
    )


def test_scores_are_a_mapping_in_the_order_of_the_forward_pass() -> None:
    scores = make_scores()
    assert isinstance(scores, Mapping)
    assert dict(scores) == VALUES
    assert scores == VALUES
    assert list(scores) == ["b", "a", "c"]
    assert len(scores) == 3
    assert scores.title == "entropy, bits"
    assert "a" in scores
    assert "d" not in scores
    assert scores.get("d") is None
    with pytest.raises(KeyError):
        scores["d"]


def test_lowest_breaks_ties_by_the_forward_pass() -> None:
    scores = make_scores()
    assert scores.lowest() == ["a"]
    assert scores.lowest(2) == ["a", "c"]
    assert scores.lowest(9) == ["a", "c", "b"]
    with pytest.raises(ConfigError, match="at least 1"):
        scores.lowest(0)


def test_scores_become_json_and_survive_pickling() -> None:
    scores = make_scores()
    data = json.loads(json.dumps(scores.to_dict()))
    assert data["values"] == VALUES
    assert data["settled"] is False
    assert data["unit"] == "bits"
    assert pickle.loads(pickle.dumps(scores)) == scores


def test_a_criterion_is_made_by_name() -> None:
    assert "entropy" in criteria
    assert make_criterion("entropy", zeros="on").place == "site"
    with pytest.raises(NameNotFoundError, match="did you mean 'entropy'"):
        make_criterion("entropie")
    with pytest.raises(ConfigError, match=r"does not take these options.*'zero'"):
        make_criterion("entropy", zero="on")
    with pytest.raises(ConfigError, match=r"zeros is 'ON': give one of exclude, on, off"):
        make_criterion("entropy", zeros="ON")
    with pytest.raises(ConfigError, match=r"pooling is 'mean': give one of all, batch"):
        make_criterion("entropy", pooling="mean")
