"""Accuracy against latency at every step of finished runs, side by side.

Each step's network is merged and timed against the dense network of the first run with its batch
norms folded, all in the same interleaved rounds, at every batch size, in eager mode and in ONNX
Runtime. Accuracies are those that the runs wrote down; what is shown is the drop against each run's
own dense network. Latency decides what is merged in eager mode.

    python benchmarks/curve.py RUN [RUN …] --names shoal easier --json benchmarks/results/curve.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import shoal
from shoal.measure import InRuntime, SideBySide
from shoal.merge.merge import merge_
from shoal.report import RunRecord, read_run
from shoal.search.ending import folded
from shoal.search.records import lineage

DENSE = "dense"


def measured(
    networks: dict[str, shoal.Network], batch: int, options: argparse.Namespace
) -> dict[str, SideBySide]:
    """Return the latencies of all networks, merged for a batch size, in both runtimes."""
    merged = {name: network.copy() for name, network in networks.items() if name != DENSE}
    for network in merged.values():
        merge_(network, batch=batch)
    models = {DENSE: folded(networks[DENSE]), **merged}
    inputs: tuple[Tensor, ...] = networks[DENSE].example_inputs(batch)[0]
    limits = {"min_seconds": options.seconds, "max_seconds": 4 * options.seconds}
    return {
        runtime: InRuntime(runtime, models, inputs).measure(inputs, DENSE, **limits)
        for runtime in ("eager", "onnxruntime")
    }


def rows_of(record: RunRecord, name: str, found: dict[int, dict[str, SideBySide]]) -> list[Any]:
    """Return the figures of a run's steps."""
    rows, dense = [], record.steps[0].metrics
    for step in record.steps:
        made = lineage(record.steps, step)[1:]  # what a last training begins from lies further back
        key = DENSE if step.step == 0 else f"{name} {step.step}"
        rows.append(
            {
                "run": name,
                "step": step.step,
                "operation": step.operation,
                "names": list(step.names),
                "removed": sum(len(one.names) for one in made),
                "epochs": sum(one.epochs for one in made),
                "top1_val": step.metrics.top1_val,
                "top1_test": step.metrics.top1_test,
                "drop_val": dense.top1_val - step.metrics.top1_val,
                "drop_test": None
                if step.metrics.top1_test is None or dense.top1_test is None
                else dense.top1_test - step.metrics.top1_test,
                "macs": step.metrics.macs,
                "speedup": {
                    f"{runtime}, batch {batch}": side.ratio(key).to_dict()
                    for batch, sides in found.items()
                    for runtime, side in sides.items()
                    if key in side.latencies
                },
            }
        )
    return rows


def config_of(run: Path) -> dict[str, Any]:
    """Return a run's options that are set, with the names of its files alone."""
    options: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    options["checkpoint"] = Path(options.get("checkpoint") or "").name or None
    kind, colon, root = (options.get("data") or "").partition(":")
    options["data"] = kind + colon + Path(root).name or None  # a run from Python names none
    return {name: value for name, value in options.items() if value is not None}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the curves as a Markdown table."""
    heads = list(rows[0]["speedup"])
    lines = [
        "| run | step | removed | epochs | validation (%) | test (%) | MMACs | "
        + " | ".join(f"dense / this, {head}" for head in heads)
        + " |",
        "|---|" + "--:|" * (6 + len(heads)),
    ]
    for row in rows:
        cells = [row["run"], row["step"], row["removed"], row["epochs"]]
        cells += [_accuracy(row, "val"), _accuracy(row, "test"), f"{row['macs'] / 1e6:.2f}"]
        for head in heads:
            gain = row["speedup"].get(head)
            cells.append("–" if gain is None else f"{gain['median']:.2f}{_mark(gain)}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    text = "\n".join(lines) + "\n"
    return text + (f"\n{_DOUBT}\n" if _UNSURE in text else "")


_UNSURE = " ?"
_DOUBT = "?: not to be trusted, since the machine was not steady meanwhile."


def _mark(gain: dict[str, Any]) -> str:
    return "" if gain.get("trusted", True) else _UNSURE  # older records have no such mark


def _accuracy(row: dict[str, Any], part: str) -> str:
    if row[f"drop_{part}"] is None:
        return "–"
    return f"{row[f'top1_{part}']:.2f} ({0.0 - row[f'drop_{part}']:+.2f})"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `shoal compress`")
    parser.add_argument("--names", nargs="+", help="what to call them; by default their folders")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement, at least")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures there, and a table beside")
    options = parser.parse_args(arguments)
    options.names = options.names or [run.name for run in options.runs]
    if len(options.names) != len(options.runs):
        parser.error("--names needs one name for each run")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    records = [read_run(run) for run in options.runs]
    networks = {DENSE: shoal.load(options.runs[0] / "steps" / "000")}
    for run, name, record in zip(options.runs, options.names, records, strict=True):
        for step in record.steps[1:]:
            networks[f"{name} {step.step}"] = shoal.load(run / "steps" / f"{step.step:03}")
    found = {batch: measured(networks, batch, options) for batch in options.batches}
    rows = [
        row
        for record, name in zip(records, options.names, strict=True)
        for row in rows_of(record, name, found)
    ]
    command = shlex.join(["python", "benchmarks/curve.py", *(arguments or sys.argv[1:])])
    machine = f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}"
    text = f"{machine}\n\n`{command}`\n\n{table(rows)}"
    print(text)
    if options.json:
        configs = {n: config_of(run) for n, run in zip(options.names, options.runs, strict=True)}
        figures = {"device": machine, "command": command, "configs": configs, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
        options.json.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
