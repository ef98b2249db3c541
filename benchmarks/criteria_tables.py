"""The tables of `criteria.py`, as Markdown, with the published figures beside the measured."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from shoal.report.markdown import markdown
from shoal.report.table import Column, Row, Table

__all__ = ["NOTHING", "passed", "published", "table"]

NOTHING = "nothing"  # the criterion that removes nothing and only fine-tunes

Found = Mapping[str, Mapping[str, Any]]  # criterion -> seed -> what its run gave

# Test accuracy against dense, in points, at a share of MACs removed, in percent.
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "shoal:cifar_resnet32": [
        {"system": "CKA (Pons et al. 2024)", "macs_percent": 54.6, "change": 0.05},
        {"system": "SNIP at init, 1 block (Jordao 2023)", "macs_percent": 6.8, "change": 0.08},
        {"system": "SNIP at init, 3 blocks", "macs_percent": 20.5, "change": -0.50},
        {"system": "SNIP at init, 5 blocks", "macs_percent": 34.1, "change": -1.00},
        {"system": "GraSP at init, 1 block", "macs_percent": 6.8, "change": 0.40},
        {"system": "GraSP at init, 3 blocks", "macs_percent": 20.5, "change": 0.34},
        {"system": "GraSP at init, 5 blocks", "macs_percent": 34.1, "change": 0.12},
    ],
    "shoal:cifar_resnet56": [
        {"system": "CKA (Pons et al. 2024)", "macs_percent": 37.5, "change": 1.25},
        {"system": "CKA", "macs_percent": 56.3, "change": 0.95},
        {"system": "CKA", "macs_percent": 60.0, "change": 0.78},
        {"system": "CKA", "macs_percent": 75.0, "change": 0.08},
        {"system": "CKA", "macs_percent": 78.8, "change": -0.66},
    ],
}
RUNTIMES = ("eager", "ONNX Runtime")
SIDES = ("dense", "smaller")
_NEAR = 4.0  # percent of MACs; a block of ResNet-32 is 6.8, one of ResNet-56 3.8


def published(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what others measured for the same network and unit."""
    blocks = options.method == "layer_pruning"
    return PUBLISHED.get(options.model.partition("?")[0], []) if blocks else []


def _unit(options: argparse.Namespace) -> str:
    return "blocks" if options.method == "layer_pruning" else "rectifiers"


def table(found: Found, options: argparse.Namespace) -> str:
    """Return all tables."""
    parts = [
        f"# Removing {_unit(options)} of {options.model}, {_at_a_time(options)}\n",
        f"{options.train_samples or 'all'} training images, dense fine-tuned for "
        f"{options.dense_epochs} epochs, then {options.epochs} epoch(s) per step with distillation "
        f"weight {options.distill:g}; SGD {options.lr:g}, cosine, {options.precision}. Scores from "
        f"{options.score_samples or 'all'} training images. Validation: {_validation(options)}.\n",
        markdown(_accuracies(found, options)),
        markdown(_costs(found, options)),
        *map(markdown, _speedups(found, options)),
        *map(markdown, _published(found, options)),
        *map(markdown, _times(found)),
    ]
    return "\n".join(parts)


def _at_a_time(options: argparse.Namespace) -> str:
    return "one at a time" if options.per_step == 1 else f"{options.per_step} at a time"


def _validation(options: argparse.Namespace) -> str:
    if options.split_test:
        return "half of the test images; the other half is reported as test"
    seen = ", which the checkpoint may have seen" if options.checkpoint else ""
    return f"{options.val_samples or 'a part'} of the training images{seen}"


def passed(rows: Sequence[Mapping[str, Any]], points: float) -> int:
    """Return how many went before the validation drop first exceeded so many points."""
    count = 0
    for row in rows[1:]:
        if row["drop_val"] > points + 1e-9:
            break
        count = row["removed"]
    return count


def _shown(options: argparse.Namespace) -> list[int]:
    """Return the numbers of gone that have a column: all, or about eight of many."""
    step = options.per_step * -(-options.remove // (8 * options.per_step))
    return sorted({*range(step, options.remove + 1, step), options.remove})


def _accuracies(found: Found, options: argparse.Namespace) -> Table:
    unit, shown = _unit(options), _shown(options)
    rows = []
    for criterion, seeds in found.items():
        cells = [criterion, str(len(seeds))]
        for n in shown:
            steps = [row for r in seeds.values() for row in r["rows"] if row["removed"] == n]
            cell = _spread([-step["drop_val"] for step in steps]) if steps else "–"
            tests = [-step["drop_test"] for step in steps if step["drop_test"] is not None]
            cells.append(cell + (f" ({fmean(tests):+.2f})" if tests else ""))
        counts = [passed(r["rows"], 1.0) for r in seeds.values()]
        within = f"{fmean(counts):.1f} ({min(counts)} to {max(counts)})"
        rows.append([*cells, "–" if criterion == NOTHING else within])
    heads = ["criterion", "seeds", *(f"{n} gone" for n in shown), f"{unit} within 1.0 point"]
    title = (
        f"Change of accuracy against dense in points, by {unit} gone: mean over seeds ± standard "
        "deviation (validation, which decides; test in parentheses)."
    )
    return _table(title, heads, rows)


def _costs(found: Found, options: argparse.Namespace) -> Table:
    rows = []
    every = [r["rows"] for seeds in _removing(found).values() for r in seeds.values()]
    for n in _shown(options):
        steps = [row for one in every for row in one if row["removed"] == n]
        if steps:
            macs, speed = (sorted(s[key] for s in steps) for key in ("macs_percent", "speedup"))
            spans = f"{macs[0]:.1f} to {macs[-1]:.1f}", f"{speed[0]:.2f} to {speed[-1]:.2f}"
            rows.append([str(n), *spans])
    title = (
        "MACs removed and speed-up, dense / this (batch 1, eager, both with their batch norms "
        "folded, from the same rounds), over all runs:"
    )
    return _table(title, ["gone", "MACs removed, %", "speed-up, ×"], rows)


def _speedups(found: Found, options: argparse.Namespace) -> list[Table]:
    heads = [f"{name}, batch {n}" for name in RUNTIMES for n in options.latency_batches]
    if not heads:
        return []
    rows = [
        [criterion, "within 1.0 point", *_timings([_last(r) for r in seeds.values()], heads)]
        for criterion, seeds in _removing(found).items()
    ]
    for n in options.latency_steps:
        for criterion, seeds in _removing(found).items():
            timed = [one for r in seeds.values() for one in r["latency"] if one["removed"] == n]
            rows.append([criterion, f"{n} gone", *_timings(timed, heads)])
    title = (
        "Speed-up of the last network within 1.0 point, and of those asked for: dense latency / "
        "its latency, both with their batch norms folded, median of pairs of rounds, range over "
        "seeds (mean latencies):"
    )
    return [_table(title, ["criterion", "network", *heads], rows)]


def _removing(found: Found) -> Found:
    """Return the runs that remove anything."""
    return {criterion: seeds for criterion, seeds in found.items() if criterion != NOTHING}


def _last(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the timings of the last network within 1.0 point."""
    last = passed(run["rows"], 1.0)
    return next((one for one in run["latency"] if one["removed"] == last), {})


def _timings(measured: Sequence[Mapping[str, Any]], heads: Sequence[str]) -> list[str]:
    """Return for each column the ratios over seeds and the mean latencies."""
    cells = []
    for head in heads:
        times = [one[head] for one in measured if head in one]
        ratios = sorted(time["ratio"]["median"] for time in times)
        if not ratios:
            cells.append("–")
            continue
        dense, smaller = (fmean(t[name]["median_ms"] for t in times) for name in SIDES)
        span = f"{ratios[0]:.2f}" + (f" to {ratios[-1]:.2f}" if len(ratios) > 1 else "")
        cells.append(f"{span} ({dense:.3g} → {smaller:.3g} ms)")
    return cells


def _published(found: Found, options: argparse.Namespace) -> list[Table]:
    others = published(options)
    if not others:
        return []
    rows = [
        [
            one["system"],
            f"{one['macs_percent']:.1f}",
            f"{one['change']:+.2f}",
            *(_beside(seeds, one["macs_percent"]) for seeds in _removing(found).values()),
        ]
        for one in others
    ]
    title = (
        "Published change of test accuracy in points, and ours by criterion at the nearest share "
        f"of MACs removed (given in parentheses; – if none is within {_NEAR:g} points). The "
        "published are on lossless CIFAR-10 with hundreds of epochs, so only the order of "
        "magnitude compares; those at initialization score and prune untrained weights and train "
        "once, ours score trained ones:"
    )
    heads = ["published system", "MACs removed, %", "published", *_removing(found)]
    return [_table(title, heads, rows)]


def _beside(seeds: Mapping[str, Any], macs_percent: float) -> str:
    """Return the measured change nearest to that share of MACs removed."""
    nearest = []
    for run in seeds.values():
        steps = [row for row in run["rows"][1:] if row["drop_test"] is not None]
        step = min(steps, key=lambda row: abs(row["macs_percent"] - macs_percent), default=None)
        if step is not None and abs(step["macs_percent"] - macs_percent) <= _NEAR:
            nearest.append(step)
    if not nearest:
        return "–"
    share = fmean(step["macs_percent"] for step in nearest)
    return f"{_spread([-step['drop_test'] for step in nearest])} ({share:.1f} %)"


def _times(found: Found) -> list[Table]:
    rows = []
    for criterion, seeds in found.items():
        splits = [r["seconds_by_stage"] for r in seeds.values() if r["seconds_by_stage"]]
        steps = sum(split["steps"] for split in splits)
        if steps:
            shares = (
                sum(split.get(stage, 0.0) for split in splits) / steps
                for stage in ("score", "fine-tune", "evaluate")
            )
            rows.append([criterion, *(f"{share:.1f}" for share in shares)])
    if not rows:
        return []
    heads = ["criterion", "score", "fine-tune", "evaluate and measure"]
    return [_table("Seconds per step:", heads, rows)]


def _spread(values: Sequence[float]) -> str:
    text = f"{fmean(values):+.2f}"
    return f"{text} ± {stdev(values):.2f}" if len(values) > 1 else text


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    first, *others = heads
    columns = (Column(first, align="left"), *map(Column, others))
    return Table(title, columns, tuple(Row(tuple(row)) for row in rows))
