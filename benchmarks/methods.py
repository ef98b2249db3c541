"""Layer Folding, EGP and EASIER at an equal number of epochs: mean and spread over seeds.

ResNet-20 with published weights is first trained on the images at hand, once per seed. Each method
then starts from that dense network and spends the same number of epochs.

    python benchmarks/methods.py path/to/cifar10-jpeg path/to/resnet20.th --out runs/methods
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

import shoal
from shoal.data import load_data
from shoal.files import write_file
from shoal.models import load_checkpoint, load_model
from shoal.report.markdown import markdown
from shoal.report.table import Column, Row, Table
from shoal.training import Recipe, fit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def systems(epochs: int, count: int) -> dict[str, dict[str, Any]]:
    """Return each system's options; all spend `epochs` after the dense network."""
    half = epochs // 2
    egp = {"method": "egp", "epochs": 1, "rounds": epochs}
    return {
        "EASIER": {"method": "easier", "epochs": 1, "remove": epochs},
        f"Layer Folding, top {count}": {
            "method": "layer_folding",
            "epochs": half,
            "slope_epochs": epochs - half,
            "top_k": count,
        },
        "EGP": egp,
        "NEPENTHE": {**egp, "zeros": "exclude", "pooling": "all"},
    }


def trained(options: argparse.Namespace, data: Any, seed: int) -> nn.Module:
    """Return a seed's dense network; it is trained once and then read."""
    model = load_model("shoal:cifar_resnet20")
    path = options.out / f"dense{seed}.pt"
    load_checkpoint(model, path if path.exists() else options.weights)
    if not path.exists():
        recipe = Recipe(lr=options.lr)
        fit(model, data.train, epochs=options.dense_epochs, recipe=recipe, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda temporary: torch.save(model.state_dict(), temporary))
    return model


def run(options: argparse.Namespace, name: str, chosen: dict[str, Any], seed: int) -> Any:
    """Return a system's result; what was done before is read from its folder."""
    data = load_data(
        f"folder:{options.root}",
        train_samples=options.images,
        val_samples=options.val,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        augment="flip_crop",
        seed=seed,
    )
    folder = options.out / f"seed{seed}" / "".join(c if c.isalnum() else "_" for c in name)
    return shoal.compress(
        trained(options, data, seed),
        data.train,
        data.val,
        test=data.test,
        out=folder,
        max_drop=100.0,
        seed=seed,
        lr=options.lr,
        **chosen,
    )


def row_of(results: Sequence[Any]) -> dict[str, Any]:
    """Return mean and spread over seeds: top-1 in percent on test images, against dense."""
    drops = [r.final.top1_test - r.dense.top1_test for r in results]
    last = [r.steps[-1] for r in results]
    return {
        "removed": fmean(r.removed for r in results),
        "total": results[0].total,
        "top1_test": fmean(r.final.top1_test for r in results),
        "change": fmean(drops),
        "change_spread": stdev(drops) if len(drops) > 1 else 0.0,
        "speedup": fmean(r.latency.speedup["median"] for r in results),
        "notes": [note for step in last for note in step.notes],
    }


def table_of(rows: dict[str, dict[str, Any]], title: str) -> Table:
    """Return the rows as a table."""
    columns = (
        Column("system", align="left"),
        Column("rectifiers removed"),
        Column("test top-1, %"),
        Column("change, points (spread over seeds)"),
        Column("dense / this, merged"),
    )
    cells = tuple(
        Row(
            (
                name,
                f"{row['removed']:.1f} of {row['total']}",
                f"{row['top1_test']:.2f}",
                f"{row['change']:+.2f} ({row['change_spread']:.2f})",
                f"{row['speedup']:.2f} ×",
            )
        )
        for name, row in rows.items()
    )
    return Table(title, columns, cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="train/<class>/ and test/<class>/")
    parser.add_argument("weights", type=Path, help="a checkpoint of ResNet-20")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--val", type=int, default=2_500)
    parser.add_argument("--epochs", type=int, default=8, help="after the dense network")
    parser.add_argument("--count", type=int, default=8, help="rectifiers that Layer Folding takes")
    parser.add_argument("--dense-epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="systems, by the beginning of their names")
    options = parser.parse_args(arguments)
    rows = {}
    for name, chosen in systems(options.epochs, options.count).items():
        if options.only and not any(name.startswith(start) for start in options.only):
            continue
        rows[name] = row_of([run(options, name, chosen, seed) for seed in range(options.seeds)])
        print(name, json.dumps(rows[name]), flush=True)
    machine = f"{platform.processor() or platform.machine()}, PyTorch {torch.__version__}"
    title = (
        f"ResNet-20, {options.images} JPEG images, {options.epochs} epochs after dense, "
        f"{options.seeds} seeds ({machine}, {torch.get_num_threads()} threads)"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "methods.json").write_text(json.dumps(rows, indent=2) + "\n")
    text = markdown(table_of(rows, title))
    (options.out / "methods.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
