"""Whether a merged network is ever slower than the unmerged one, and by how much it is faster.

A third of the sites, spread evenly, and then all of them are linearized with lines; `merge_`
decides by latency at the batch size. Dense and merged networks are timed in interleaved rounds;
"folded" has batch norms and lines folded and nothing joined: what it gains over the unmerged
network is no merit of shallowness. A ratio is the median of the rounds' own, with quartiles.

    python benchmarks/merge_latency.py --threads 2 --json benchmarks/results/merge_latency.json
    python benchmarks/merge_latency.py --device cuda --batches 1 32 256 --precision fp32 bf16 \
        --compile --json benchmarks/results/merge_latency_cuda.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.measure import latency_ratio, measure_latency
from shoal.merge.merge import merge_
from shoal.models import load_model
from shoal.modes import make_channels_last
from shoal.network import Network, capture
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


def linearized(dense: Network, share: str, images: Tensor) -> Network:
    """Return a copy with lines fitted on the images at a third of the sites, or at all."""
    names = [site.name for site in dense.sites]
    chosen = names[1::3] if share == "a third" else names
    network = dense.copy()
    linearize_(network, chosen, loader=[(images, None)])
    return network


def measure(
    dense: Network, share: str, batch: int, precision: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return errors, ratios and latencies of one network at one batch size."""
    generator = torch.Generator().manual_seed(0)
    side = options.side
    images = torch.randn(batch, 3, side, side, generator=generator).to(options.device)
    calibration = torch.randn(8, 3, side, side, generator=generator).to(options.device)
    unmerged = linearized(dense, share, calibration).to(TYPES[precision])
    images = images.to(TYPES[precision]).contiguous(memory_format=torch.channels_last)
    merged, folded = unmerged.copy(), unmerged.copy()
    report = merge_(merged, batch=batch)
    merge_(folded, policy="fold", batch=batch)
    models: dict[str, nn.Module] = {"unmerged": unmerged, "folded": folded, "merged": merged}
    for model in models.values():
        make_channels_last(model)
    found: dict[str, Any] = {
        "max_rel_error": report.max_rel_error,
        "max_rel_error_float64": report.max_rel_error_float64,
        "depth": [report.depth_before, report.depth_after],
        "joined": sum(m.weighted_before > 1 for m in report.merged),
    }
    runtimes = {"eager": models}
    if options.compile:
        runtimes["compile"] = {n: torch.compile(m, dynamic=False) for n, m in models.items()}
    for runtime, callables in runtimes.items():
        times = measure_latency(
            callables, (images,), min_seconds=options.seconds, repeats=options.rounds
        )
        found[runtime] = {
            "merged_over_unmerged": latency_ratio(times["merged"], times["unmerged"]).to_dict(),
            "merged_over_folded": latency_ratio(times["merged"], times["folded"]).to_dict(),
            **{name: latency.to_dict() for name, latency in times.items()},
        }
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the ratios as a Markdown table."""
    lines = [
        "| network | sites linearized | batch | type, runtime | layers | joined | unmerged (ms) "
        "| merged (ms) | merged / unmerged | merged / folded | error |",
        "|---|---|--:|---|---|--:|--:|--:|---|---|--:|",
    ]
    for row in rows:
        for runtime in ("eager", "compile"):
            if runtime in row:
                unmerged, merged = row[runtime]["unmerged"], row[runtime]["merged"]
                ratios = [
                    "{median:.2f} ({q1:.2f} to {q3:.2f})".format(**row[runtime][key])
                    for key in ("merged_over_unmerged", "merged_over_folded")
                ]
                before, after = row["depth"]
                lines.append(
                    f"| {row['model'].partition(':')[2]} | {row['share']} | {row['batch']} "
                    f"| {row['precision']}, {runtime} | {before} → {after} | {row['joined']} "
                    f"| {unmerged['median_ms']:.2f} | {merged['median_ms']:.2f} "
                    f"| {ratios[0]} | {ratios[1]} | {row['max_rel_error']:.0e} |"
                )
    return "\n".join(lines) + "\n"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--shares", nargs="+", default=list(SHARES), choices=SHARES)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=list(TYPES))
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--side", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement, at least")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures there, and a table beside")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = f"{name}, {options.threads} threads, torch {torch.__version__}"
    given = list(arguments) if arguments is not None else sys.argv[1:]
    record: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/merge_latency.py", *given]),
        "device": machine,
        "date": date.today().isoformat(),
        "rows": [],
    }
    for model in options.models:
        torch.manual_seed(0)
        loaded = load_model(model).eval()
        dense = capture(loaded, torch.randn(2, 3, options.side, options.side)).to(device)
        for share in options.shares:
            for batch in options.batches:
                for precision in options.precision:
                    found = measure(dense, share, batch, precision, options)
                    row = {"model": model, "share": share, "batch": batch, "precision": precision}
                    record["rows"].append(row | found)
                    print(table(record["rows"][-1:]).splitlines()[-1], flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(record, indent=2) + "\n")
            heading = f"{machine}, {record['date']}\n\n    {record['command']}\n\n"
            options.json.with_suffix(".md").write_text(heading + table(record["rows"]))
    worst = max(
        row[r]["merged_over_unmerged"]["median"]
        for row in record["rows"]
        for r in ("eager", "compile")
        if r in row
    )
    print(f"\nmerged / unmerged: at most {worst:.3f}")


if __name__ == "__main__":
    main()
