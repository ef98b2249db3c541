"""Every public name has an example in its docstring that runs as it stands."""

from __future__ import annotations

import doctest

import pytest

import shoal
import shoal.methods
from shoal.data import data_sets
from shoal.importance import criteria
from shoal.models.lookup import models
from shoal.network import ops
from shoal.runtimes import RUNTIMES
from shoal.search import gauge
from shoal.search.method import methods

NAMES = sorted(set(shoal.__all__) - {"__version__"})


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what examples register to themselves; a search's end measures briefly, in PyTorch."""
    for registry in (criteria, data_sets, methods, models):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(RUNTIMES, "_entries", {"eager": RUNTIMES["eager"]})
    monkeypatch.setattr(gauge, "_SECONDS", 0.0)
    for table in ("_TABLE", "_TYPES"):
        monkeypatch.setattr(ops, table, dict(getattr(ops, table)))


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs_in_an_empty_session(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = getattr(shoal, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, f"shoal.{name}", None, None)
    assert example.examples, f"shoal.{name} has no example in its docstring"
    failed = doctest.DocTestRunner().run(example).failed
    assert failed == 0, capsys.readouterr().out
