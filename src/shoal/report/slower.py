"""Where a run's result is slower than dense, and what to type instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shoal.display import to_type
from shoal.report.latency_tables import quotient, runtime_name
from shoal.search.figures import SLOWER, is_slower
from shoal.search.records import LatencyReport, RunRecord


def slower_lines(record: RunRecord) -> list[str]:
    """Return what a reader must know first: where the result is slower than dense, and what helps.

    What helps follows from what was measured there. If merging is to blame, merging for that place
    does; if the search did not decide there, deciding there does; else dense is to be used.
    """
    end = record.latency
    slower = (
        [] if end is None else [one for one in end.measured if _is_slower(one, "result_merged")]
    )
    if end is None or not slower:
        return []
    merging = [one for one in slower if _is_as_fast(one, "result_folded")]
    unasked = [one for one in slower if not one["decides"] and one not in merging]
    decided = [one for one in slower if one["decides"] and one not in merging]
    folder = "DIR" if record.folder is None else str(record.folder)
    return [
        *(f"slower than dense in {_place(one)}: {_ratio(one)}" for one in slower),
        *(_merge_again(one, folder) for one in merging),
        *([_search_there(end, unasked)] if unasked else []),
        *([_keep_dense(decided, folder)] if decided else []),
    ]


def _is_slower(one: Mapping[str, Any], name: str) -> bool:
    return name in one["ratio"] and is_slower(one["ratio"][name])


def _is_as_fast(one: Mapping[str, Any], name: str) -> bool:
    return name in one["ratio"] and bool(one["ratio"][name]["low"] > 1 / SLOWER)


def _place(one: Mapping[str, Any]) -> str:
    return f"{runtime_name(one['runtime'])} at batch {one['batch']}"


def _ratio(one: Mapping[str, Any]) -> str:
    return f"dense / result {quotient(one['ratio']['result_merged'])}"


def _merge_again(one: Mapping[str, Any], folder: str) -> str:
    return (
        f"merging is what costs in {_place(one)} "
        f"({quotient(one['ratio']['result_folded'])} without it): merge for there, by"
        + to_type("export", folder, "--runtime", one["runtime"], "--batch", one["batch"])
    )


def _search_there(end: LatencyReport, places: Sequence[Mapping[str, Any]]) -> str:
    asked = [one for one in end.measured if one["decides"]]
    runtimes, batches = (
        ",".join(dict.fromkeys(str(one[key]) for one in [*asked, *places]))
        for key in ("runtime", "batch")
    )
    return (
        "the search did not decide there: to deploy there, give its command again with --runtime "
        f"{runtimes} --latency-batch {batches} and another --out"
    )


def _keep_dense(places: Sequence[Mapping[str, Any]], folder: str) -> str:
    where = " and in ".join(map(_place, places))
    return (
        f"in {where} search by --method shoal, which only does what was measured to save time, or "
        f"use dense, by{to_type('export', folder, '--step', 0)}"
    )
