"""What is published of runs of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal import published
from shoal.search.job import job_of


def published_of(
    options: Mapping[str, Any], removed: int, *, twin: bool = False
) -> published.Cell | None:
    """Return the published result of a run that removed so much; None without one.

    Args:
        options: of the run, flat; what is missing, as in old runs, has its default.
        removed: how many rectifiers or blocks are gone, as the method counts.
        twin: whether the result's layers were trained from scratch.
    """
    kind = {name: str(options.get(name) or "") for name in ("model", "data", "method")}
    if not all(kind.values()) or not published.variants(kind["method"]):
        return None
    usual = job_of(kind, {}).to_dict()
    return published.find_run({**usual, **options}, removed, twin=twin)
