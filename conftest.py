"""Examples in docstrings run alone: what one registers, the next does not see."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def examples_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what an example registers to itself, under `pytest --doctest-modules src/shoal`."""
    if isinstance(request.node, pytest.DoctestItem):
        from registries import keep_registries

        keep_registries(monkeypatch)
