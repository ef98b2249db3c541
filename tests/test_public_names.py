"""Every public name has an example in its docstring that runs as it stands."""

from __future__ import annotations

import doctest

import pytest

import shoal
import shoal.methods
from shoal.data import data_sets
from shoal.importance import criteria
from shoal.models.catalog import models
from shoal.network import ops
from shoal.runtimes import RUNTIMES
from shoal.search.method import methods

NAMES = sorted(
    set(shoal.__all__)
    - {"__version__"}
    - {"Method", "Progress", "Result", "compress", "register_method"}
)


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (criteria, data_sets, methods, models, RUNTIMES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
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
