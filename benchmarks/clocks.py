"""Whether the 95 % intervals of latency ratios hold what they promise, on a busy machine as well.

A network that runs five times in a row is measured beside a copy of itself (truth: 1) and beside
one that runs four times (truth: 5/4), all in the same rounds, twenty times over: as the machine is,
and with a program on each of its processors that does nothing but compute. Law: of the twenty
intervals of either ratio at least 18 cover the truth or are marked as not to be trusted. Beside it
stands the interval of a sign test over the rounds of the same measurements, which takes them to be
independent and marks nothing.

    python benchmarks/clocks.py --json benchmarks/results/clocks.json
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from math import comb
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.measure import Latency, latency_ratio, measure_latency

TIMES = 5
TRUTHS = {"itself": 1.0, "four of five": TIMES / (TIMES - 1)}
SETTINGS = ("as it is", "loaded")
LAW = 18 / 20


class Repeated(nn.Module):
    """Runs a network a number of times on the same input."""

    def __init__(self, network: nn.Module, times: int) -> None:
        super().__init__()
        self.network, self.times = network, times

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the last run."""
        for _ in range(self.times):
            y: Tensor = self.network(x)
        return y


def convolutions() -> nn.Module:
    """Return a network that takes milliseconds."""
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)]
    return nn.Sequential(*layers).eval()


@contextmanager
def load(processors: int) -> Iterator[None]:
    """Keep so many processors busy."""
    command = [sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(processors)]
    try:
        time.sleep(1.0)
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure once; return each ratio with its truth."""
    network, x = convolutions(), torch.randn(options.batch, 3, 32, 32)
    models = {
        "network": Repeated(network, TIMES),
        "itself": Repeated(copy.deepcopy(network), TIMES),
        "four of five": Repeated(copy.deepcopy(network), TIMES - 1),
    }
    begun = time.perf_counter()
    found = measure_latency(
        models, x, threads=options.threads, device=options.device, max_seconds=options.seconds
    )
    seconds = time.perf_counter() - begun
    ratios = {name: judged(found["network"], found[name], truth) for name, truth in TRUTHS.items()}
    return {"seconds": seconds, "median_ms": found["network"].median_ms, "ratios": ratios}


def judged(one: Latency, other: Latency, truth: float) -> dict[str, Any]:
    """Return the ratio of two latencies, and whether its interval covers the truth."""
    ratio = latency_ratio(one, other)
    low, high = sign_test([a / b for a, b in zip(one.rounds_ms, other.rounds_ms, strict=True)])
    return ratio.to_dict() | {
        "truth": truth,
        "covers": ratio.low <= truth <= ratio.high,
        "sign_test": {"low": low, "high": high, "covers": low <= truth <= high},
    }


def sign_test(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a median if the values are independent."""
    ordered, n, k = sorted(values), len(values), 1
    while 2 * (k + 1) <= n and 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n <= 0.05:
        k += 1
    return ordered[k - 1], ordered[n - k]


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Count, for each setting and ratio, what covers the truth and what is marked."""
    found = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        here = [row for row in rows if row["setting"] == setting]
        for name, truth in TRUTHS.items():
            ratios = [row["ratios"][name] for row in here]
            found.append(
                {
                    "setting": setting,
                    "ratio": name,
                    "truth": truth,
                    "measured": len(ratios),
                    "cover": sum(r["covers"] for r in ratios),
                    "marked": sum(not r["trusted"] for r in ratios),
                    "cover_or_marked": sum(r["covers"] or not r["trusted"] for r in ratios),
                    "sign_test_covers": sum(r["sign_test"]["covers"] for r in ratios),
                    "width_percent": 100
                    * sorted(r["high"] / r["low"] - 1 for r in ratios)[len(ratios) // 2],
                    "seconds": sum(row["seconds"] for row in here) / len(here),
                }
            )
    return found


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the summary as Markdown."""
    lines = [
        "| machine | ratio | truth | measured | cover | marked | cover or marked | sign test "
        "covers | width of an interval, median | seconds of one |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        lines.append(
            f"| {one['setting']} | {one['ratio']} | {one['truth']:.3f} | {one['measured']} "
            f"| {one['cover']} | {one['marked']} | {one['cover_or_marked']} "
            f"| {one['sign_test_covers']} | {one['width_percent']:.1f} % | {one['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def misses(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the intervals that were trusted and miss the truth."""
    lines = [
        f"- {row['setting']}, {name}: {r['median']:.3f} ({r['low']:.3f} to {r['high']:.3f}), "
        f"truth {r['truth']:.3f}"
        for row in rows
        for name, r in row["ratios"].items()
        if r["trusted"] and not r["covers"]
    ]
    return "\n".join(["Trusted intervals that miss the truth:", "", *(lines or ["- none"])]) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--times", type=int, default=20, help="measurements in each setting")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement, at most")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the measured networks")
    parser.add_argument("--json", type=Path, help="write the figures there, and a table beside")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    given = list(arguments) if arguments is not None else sys.argv[1:]
    processors = os.cpu_count() or 1
    name = torch.cuda.get_device_name() if "cuda" in options.device else platform.machine()
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/clocks.py", *given]),
        "device": f"{name}, {processors} processors, threads used: {options.threads}, "
        f"torch {torch.__version__}",
        "date": date.today().isoformat(),
        "load_average_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "rows": [],
    }
    for setting in options.settings:
        with load(processors if setting == "loaded" else 0):
            for _ in range(options.times):
                record["rows"].append({"setting": setting} | measure(options))
        print(table(summary(record["rows"])[-len(TRUTHS) :]), flush=True)
    record["summary"] = summary(record["rows"])
    text = f"{table(record['summary'])}\n{misses(record['rows'])}"
    print(misses(record["rows"]))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=2) + "\n")
        heading = (
            f"{record['device']}, {record['date']}, load average before "
            f"{record['load_average_before']:.1f}\n\n    {record['command']}\n\n"
        )
        options.json.with_suffix(".md").write_text(heading + text)
    held = all(one["cover_or_marked"] >= LAW * one["measured"] for one in record["summary"])
    print("the law holds" if held else "the law does not hold")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
