"""Every public name has an example in its docstring that runs as it stands."""

from __future__ import annotations

import doctest

import pytest

import shoal
from registries import keep_registries

NAMES = sorted(set(shoal.__all__) - {"__version__"})


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_registries(monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_public_name_runs_in_an_empty_session(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = getattr(shoal, name).__doc__ or ""
    example = doctest.DocTestParser().get_doctest(text, {}, f"shoal.{name}", None, None)
    assert example.examples, f"shoal.{name} has no example in its docstring"
    failed = doctest.DocTestRunner().run(example).failed
    assert failed == 0, capsys.readouterr().out
