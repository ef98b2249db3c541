"""What examples register, kept to themselves."""

from __future__ import annotations

import pytest

import shoal.methods  # noqa: F401  (registers them)
from shoal.data import data_sets
from shoal.importance import criteria
from shoal.models.lookup import models
from shoal.network import ops
from shoal.runtimes import RUNTIMES
from shoal.search import ending
from shoal.search.method import methods


def keep_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo at the end what is registered; a search's end measures briefly, in PyTorch alone."""
    for registry in (criteria, data_sets, methods, models):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(RUNTIMES, "_entries", {"eager": RUNTIMES["eager"]})
    for name in ("_DECIDES", "_OTHER"):
        monkeypatch.setattr(ending, name, {"min_seconds": 0.0})
    for table in ("_TABLE", "_TYPES"):
        monkeypatch.setattr(ops, table, dict(getattr(ops, table)))
