"""Whether a merged network is ever slower than the unmerged one, and by how much it is faster.

A third of the sites, spread evenly, and then all of them are linearized with lines. For each
runtime and batch size `merge_` decides by latency there; the network as it was, folded and merged
is then timed there in interleaved rounds. "Folded" has batch norms and lines folded and nothing
joined, as a runtime does it by itself: what that gains over the unmerged network is no merit of
shallowness. Ratios are folded, or unmerged, over merged, with 95 % intervals: 2 is twice as fast.

    python benchmarks/merge_latency.py --out benchmarks/results/merge_latency
    python benchmarks/merge_latency.py --device cuda --batches 1 32 256 --precision fp32 bf16 \
        --runtimes eager compile --out benchmarks/results/merge_latency_cuda

What the file of figures holds is not measured again: the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.errors import ShoalError
from shoal.files import write_file
from shoal.measure import InRuntime, latency_ratio
from shoal.merge.merge import merge_
from shoal.models import load_model
from shoal.network import Network, capture
from shoal.report.latency_tables import quotient
from shoal.report.markdown import markdown
from shoal.report.table import Column, Row, Table, text_columns
from shoal.runtimes.runtime import installed
from shoal.search.figures import is_slower
from shoal.surgery import linearize_

MODELS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "torchvision:vgg16_bn",
    "torchvision:swin_t",
    "timm:vit_tiny_patch16_224",
    "timm:convnext_atto",
)
SHARES = ("a third", "all")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KEYS = ("model", "share", "batch", "precision", "runtime")

Facts = dict[str, Any]  # of a network at a batch size in a runtime


def linearized(dense: Network, share: str, images: Tensor) -> Network:
    """Return a copy with lines fitted on the images at a third of the sites, or at all."""
    names = [site.name for site in dense.sites]
    chosen = names[1::3] if share == "a third" else names
    network = dense.copy()
    linearize_(network, chosen, loader=[(images, None)])
    return network


def measure(dense: Network, asked: Facts, options: argparse.Namespace) -> Facts:
    """Return errors, ratios and latencies of one network; a line where it cannot run there."""
    generator = torch.Generator().manual_seed(0)
    batch, side, kind = asked["batch"], options.side, TYPES[asked["precision"]]
    images = torch.randn(batch, 3, side, side, generator=generator).to(options.device, kind)
    calibration = torch.randn(8, 3, side, side, generator=generator).to(options.device)
    unmerged = linearized(dense, asked["share"], calibration).to(kind).eval()
    merged, folded = unmerged.copy(), unmerged.copy()
    try:
        report = merge_(merged, batch=batch, runtime=asked["runtime"])
    except ShoalError as error:
        return {"missing": str(error)}
    merge_(folded, policy="fold")
    networks = {"unmerged": unmerged, "folded": folded, "merged": merged}
    made = InRuntime(asked["runtime"], networks, images, threads=options.threads)
    found = made.measure(
        images, "folded", min_seconds=options.seconds, max_seconds=10.0 * options.seconds
    )
    if found.missing:
        return {"missing": "; ".join(found.missing.values())}
    times = found.latencies
    over = {
        f"{name}_over_merged": latency_ratio(times[name], times["merged"]).to_dict()
        for name in ("folded", "unmerged")
    }
    return {
        "doubt": report.layers_doubt or report.latency_doubt,  # of the merge's own measurements
        "max_rel_error": report.max_rel_error,
        "max_rel_error_float64": report.max_rel_error_float64,
        "depth": [report.depth_before, report.depth_after],
        "joined": sum(m.weighted_before > 1 for m in report.merged),
        "macs": [report.macs_before, report.macs_after],
        "ms": {name: latency.median_ms for name, latency in times.items()},
        **over,
    }


def table_of(rows: Sequence[Facts]) -> Table:
    """Return the ratios, a line for each network, batch size and runtime."""
    columns = (
        *text_columns("network", "linearized", "runtime"),
        Column("batch"),
        *text_columns("layers"),
        Column("joined"),
        Column("folded, ms"),
        Column("merged, ms"),
        Column("folded / merged"),
        Column("unmerged / merged"),
        Column("error"),
    )
    notes = ("?: the machine was too busy for `merge_` to decide by latency",)
    busy = any(row.get("doubt") for row in rows)
    return Table("", columns, tuple(map(row_of, rows)), notes if busy else ())


def row_of(row: Facts) -> Row:
    """Return the line of a network at a batch size in a runtime."""
    kind = "" if row["precision"] == "fp32" else f", {row['precision']}"
    head = (row["model"].partition(":")[2], row["share"], row["runtime"] + kind, row["batch"])
    if "missing" in row:
        return Row((*head, row["missing"], *[""] * 6))
    before, after = row["depth"]
    ratios = [quotient(row[f"{name}_over_merged"]) for name in ("folded", "unmerged")]
    times = [f"{row['ms'][name]:.2f}" for name in ("folded", "merged")]
    error = f"{row['max_rel_error']:.0e}"
    joined = f"{row['joined']}{' ?' if row['doubt'] else ''}"
    return Row((*head, f"{before} → {after}", joined, *times, *ratios, error))


def slower(rows: Sequence[Facts]) -> list[str]:
    """Return, in words, which merged networks are certainly slower than what they replace."""
    return [
        f"{', '.join(str(row[key]) for key in KEYS)}: {row['folded_over_merged']['median']:.2f} ×"
        for row in rows
        if "missing" not in row and is_slower(row["folded_over_merged"])
    ]


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--shares", nargs="+", default=list(SHARES), choices=SHARES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=list(TYPES))
    parser.add_argument("--runtimes", nargs="+", default=list(installed()))
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, at least")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("runs/merge_latency"), help="of two files")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = parser_of()
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    given = ["python", "benchmarks/merge_latency.py", *(arguments or sys.argv[1:])]
    about = {
        "device": f"{name}, {options.threads} threads, torch {torch.__version__}",
        "side": options.side,
        "seconds": options.seconds,
    }
    book: Facts = {**about, "command": shlex.join(given), "date": str(date.today()), "rows": []}
    path = options.out.with_suffix(".json")
    if path.exists():
        book = json.loads(path.read_text())
        if any(book.get(key) != value for key, value in about.items()):
            parser.error(f"{path} was begun with another {', '.join(about)}: give another --out")
    rows: list[Facts] = book["rows"]
    done = {tuple(row[key] for key in KEYS) for row in rows}
    for model in options.models:
        torch.manual_seed(0)
        loaded = load_model(model).eval()
        dense = capture(loaded, torch.randn(2, 3, options.side, options.side)).to(device)
        wanted = (options.shares, options.batches, options.precision, options.runtimes)
        for values in product([model], *wanted):
            if values in done:
                continue
            asked = dict(zip(KEYS, values, strict=True))
            rows.append({**asked, **measure(dense, asked, options)})
            shown = markdown(table_of(rows[-1:])).splitlines()
            print(next(line for line in reversed(shown) if line.startswith("|")), flush=True)
            write(path, book)
    for line in slower(rows):
        print(f"slower than what it replaces: {line}")


def write(path: Path, book: Facts) -> None:
    """Write the figures, and the table beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(book, indent=2) + "\n")
    heading = f"{book['device']}, {book['date']}\n\n    {book['command']}\n"
    path.with_suffix(".md").write_text(f"{heading}\n{markdown(table_of(book['rows']))}")


if __name__ == "__main__":
    main()
