"""What shoal does on one GPU in a few minutes: its laws, two searches, and latency at three sizes.

    python benchmarks/gpu.py folder:path/to/cifar10-jpeg --out runs/gpu

ResNet-18 (with the stem for small images) and ResNet-56 are trained, searched past the allowed drop
and trained for a last time; dense, folded, and the result, merged, are then timed side by side,
eager and compiled, in float32 and bfloat16. Every part is kept in the folder as soon as it is done:
the same command goes on where it was stopped. No part is begun that the minutes do not allow, and
what is missing is named. `--toy` does the same on scikit-learn's digits, on a CPU in a minute.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import shoal
from shoal.data import DataSet, load_data
from shoal.files import write_file
from shoal.measure import InRuntime
from shoal.models import load_model
from shoal.network import Network
from shoal.report.latency_tables import quotient
from shoal.report.markdown import markdown
from shoal.report.table import Column, Row, Table, text_columns
from shoal.search.budget import Clock

ROOT = Path(__file__).resolve().parents[1]
RUNTIMES = ("eager", "compile")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TESTS, SEARCH, LATENCY = 60.0, 60.0, 30.0  # seconds that a part needs at least

# What each network is trained and searched with: epochs before, of each step, and at last.
NETWORKS: dict[str, dict[str, Any]] = {
    "shoal:resnet18_cifar": {"dense_epochs": 24, "epochs": 3, "final_epochs": 12},
    "shoal:cifar_resnet56": {"dense_epochs": 24, "epochs": 3, "final_epochs": 12},
}
TOY: dict[str, dict[str, Any]] = {
    "shoal:digits_resnet": {
        "method": "easier",
        "max_drop": 100.0,
        "remove": 2,
        "dense_epochs": 1,
        "final_epochs": 1,
    },
}


class Book:
    """What was found so far, in a file, and the time that is left."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._file = folder / "gpu.json"
        self._end = time.monotonic() + seconds
        self.parts: dict[str, Any] = {}
        if self._file.exists():
            self.parts = json.loads(self._file.read_text(encoding="utf-8"))

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return self._end - time.monotonic()

    def part(self, name: str, least: float, make: Callable[[], Any]) -> Any:
        """Return what a part gives, or gave before; None where too little time is left for it."""
        if name not in self.parts:
            if self.left < least:
                print(f"{name}: not begun, {self.left:.0f} s are left", flush=True)
                return None
            start = time.monotonic()
            found = make()
            if found is None:
                return None
            self.parts[name] = found
            write_file(self._file, json.dumps(self.parts, indent=2) + "\n")
            print(f"{name}: done in {time.monotonic() - start:.0f} s", flush=True)
        return self.parts[name]


def tests(seconds: float) -> str | None:
    """Run the tests of what a GPU does differently; return pytest's last line, None if late."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py"]
    with tempfile.TemporaryFile("w+") as said:  # no pipe, which a test's own process could hold
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=said, stderr=said, timeout=seconds)
        except subprocess.TimeoutExpired:
            print(f"tests: stopped after {seconds:.0f} s", flush=True)
            return None
        said.seek(0)
        lines = said.read().strip().splitlines()
    return lines[-1] if lines else f"pytest ended with {done.returncode}"


def searched(
    name: str, data: DataSet, folder: Path, seconds: float, device: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Train and search a network within its time, in its folder; return its figures."""
    spent = Clock(folder / "seconds.txt").seconds  # of earlier calls, which count too
    result = shoal.compress(
        load_model(name, num_classes=data.num_classes),
        data.train,
        data.val,
        test=data.test,
        out=folder,
        base=f"{name}?num_classes={data.num_classes}",
        hours=(spent + seconds) / 3600.0,
        dense_lr=0.1,
        device=device,
        **options,
    )
    return {
        "removed": f"{result.removed} of {result.total} {result.unit}",
        "depth": [result.dense.depth, result.latency.merged_depth],
        "macs": [result.dense.macs, result.latency.merged_macs],
        "top1_val": [result.dense.top1_val, result.final.top1_val],
        "top1_test": [result.dense.top1_test, result.final.top1_test],
        "seconds": sum(step.seconds for step in result.steps),
        "stopped": result.stopped,
        "notes": list(result.notes),
    }


def latencies(folder: Path, batches: Sequence[int], device: torch.device) -> list[dict[str, Any]]:
    """Time dense, folded, and the result, merged, in the same rounds: type by runtime by batch."""
    dense = shoal.load(folder, step=0).to(device)
    shoal.merge_(dense, policy="fold")
    result = shoal.load(folder).to(device)
    return [
        {"type": name, **row}
        for name, dtype in TYPES.items()
        for row in _timed({"dense": dense, "result": result}, dtype, batches)
    ]


def _timed(
    networks: dict[str, Network], dtype: torch.dtype, batches: Sequence[int]
) -> Iterator[dict[str, Any]]:
    cast = {name: network.copy().eval().to(dtype) for name, network in networks.items()}
    samples = {size: cast["dense"].example_inputs(batch=size)[0] for size in (2, *batches)}
    for runtime in RUNTIMES:
        made = InRuntime(runtime, cast, samples[2])
        for size in batches:
            found = made.measure(samples[size], "dense", min_seconds=1.0, max_seconds=10.0)
            yield found.to_dict()


# ---------------------------------------------------------------------- what is shown


def searches_table(parts: dict[str, Any]) -> Table:
    """Return the searches: accuracy, size and time of each."""
    columns = (
        *text_columns("network"),
        Column("removed", align="left"),
        Column("depth"),
        Column("work, M MACs"),
        Column("validation, %"),
        Column("test, %"),
        Column("search, s"),
    )
    rows = [
        Row(
            (
                name.removeprefix("search "),
                found["removed"],
                "{} → {}".format(*found["depth"]),
                "{:.1f} → {:.1f}".format(*(count / 1e6 for count in found["macs"])),
                "{:.2f} → {:.2f}".format(*found["top1_val"]),
                "{:.2f} → {:.2f}".format(*found["top1_test"]),
                f"{found['seconds']:.0f}",
            )
        )
        for name, found in parts.items()
        if name.startswith("search ")
    ]
    notes = ("dense → result; the depth and work of the result are those of the merged network, "
             "the seconds those of all steps, with the training of the dense network",)  # fmt: skip
    return Table("searches", columns, tuple(rows), notes)


def latency_table(parts: dict[str, Any]) -> Table:
    """Return dense ÷ result for each network, type, runtime and batch size."""
    columns = (
        *text_columns("network", "type", "runtime"),
        Column("batch"),
        Column("dense, folded", "ms"),
        Column("result, merged", "ms"),
        Column("dense / result"),
    )
    rows = []
    for name, found in parts.items():
        for one in found if name.startswith("latency ") else ():
            ratio, times = one["ratio"].get("result"), one["latency"]
            cells = (
                name.removeprefix("latency "),
                one["type"],
                one["runtime"],
                one["batch"],
                times["dense"]["median_ms"] if ratio else None,
                times["result"]["median_ms"] if ratio else None,
                None if ratio is None else quotient(ratio),
            )
            rows.append(Row(cells))
    notes = ("median of one call; the ratio over pairs of rounds, with its 95 % interval",)
    return Table("latency", columns, tuple(rows), notes)


def text(parts: dict[str, Any], wanted: Sequence[str]) -> str:
    """Return the page: where and when, the tests, the two tables, what is missing."""
    head = f"{parts['device']}, PyTorch {parts['torch']}, {parts['date']}: `{parts['command']}`"
    lines = [head, f"Tests: {parts.get('tests', 'not run')}"]
    lines += [markdown(searches_table(parts)), markdown(latency_table(parts))]
    missing = [name for name in wanted if name not in parts]
    if missing:
        lines.append(f"Missing, for want of time: {', '.join(missing)}.")
    return "\n\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", default="digits", help="as for `shoal compress`")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing that goes beyond")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--batch-size", type=int, default=512, help="of the training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--toy", action="store_true", help="try it out on the digits")
    options = parser.parse_args(arguments)
    networks = TOY if options.toy else NETWORKS
    options.out.mkdir(parents=True, exist_ok=True)
    book = Book(options.out, 60.0 * options.minutes)
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    about = {
        "device": torch.cuda.get_device_name(device) if cuda else str(device),
        "torch": torch.__version__,
        "data": [options.data, options.toy],
        "batches": [options.batch_size, *options.batches],
    }
    others = [key for key, one in about.items() if book.parts.setdefault(key, one) != one]
    if others:
        parser.error(
            f"{options.out} was begun with another {', '.join(others)}: give another --out"
        )
    book.parts.setdefault("command", " ".join(["benchmarks/gpu.py", *(arguments or sys.argv[1:])]))
    book.parts.setdefault("date", datetime.datetime.now(datetime.UTC).date().isoformat())
    if not options.toy:
        book.part("tests", TESTS, partial(tests, TESTS))
    size = min(64, options.batch_size) if options.toy else options.batch_size
    reading = {"batch_size": size, "eval_batch_size": 1000, "device": options.device}
    data = load_data(options.data, train_samples=300 if options.toy else None, **reading)
    for place, (name, chosen) in enumerate(networks.items()):
        folder = options.out / name.rpartition(":")[2]
        # What comes after, and the networks that wait, need their time too.
        seconds = (book.left - LATENCY * (len(networks) - place)) / (len(networks) - place)
        search = partial(searched, name, data, folder, seconds, options.device, chosen)
        if book.part(f"search {name}", SEARCH, search) is not None:
            measure = partial(latencies, folder, options.batches, device)
            book.part(f"latency {name}", LATENCY, measure)
    wanted = [f"{part} {name}" for name in networks for part in ("search", "latency")]
    page = text(book.parts, wanted)
    write_file(options.out / "gpu.md", page)
    print(page)


if __name__ == "__main__":
    main()
