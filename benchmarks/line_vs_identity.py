"""Accuracy right after one rectifier is removed: by its fitted line, and by the identity.

Each site of a trained network is linearized on its own, without fine-tuning. The lines are fitted
on training images, the accuracy is that on test images.

    python benchmarks/line_vs_identity.py path/to/cifar10-jpeg path/to/resnet20.th
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from shoal.data import load_data
from shoal.models import load_checkpoint, load_model
from shoal.modes import make_channels_last
from shoal.network import capture
from shoal.surgery import fit_lines, linearize_
from shoal.training import evaluate

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def compare(
    root: Path,
    weights: Path,
    *,
    model: str = "shoal:cifar_resnet20",
    calibration: int = 2000,
    test: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Return top-1 accuracies in percent: dense, and of each site by line and by identity.

    Args:
        root: a folder of images, train/<class>/ and test/<class>/.
        weights: a checkpoint of the model, for images normalised as ImageNet's.
        model: what `load_model` takes.
        calibration: the number of training images that the lines are fitted on.
        test: the number of test images; None for all.
        progress: called with each line of the table.
    """
    data = load_data(
        f"folder:{root}", train_samples=calibration, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    images: Any = data.test if test is None else data.test.take(test)  # type: ignore[union-attr]
    original = load_model(model)
    load_checkpoint(original, weights)
    make_channels_last(original)
    network = capture(original.eval(), data.example_inputs())
    lines = fit_lines(network, data.train)
    found: dict[str, Any] = {"dense": evaluate(network, images).top1, "sites": {}}
    progress(f"dense {found['dense']:.1f} % on {images.num_samples} images\n")
    progress(f"{'site':24}{'identity':>10}{'line':>8}{'gain':>8}{'residual':>10}")
    for site in network.sites:
        row = {"residual": lines[site.name].residual}
        for how in ("identity", "line"):
            twin = network.copy()
            linearize_(twin, [site.name], how=how, lines=lines)
            row[how] = evaluate(twin, images).top1
        row["gain"] = row["line"] - row["identity"]
        found["sites"][site.name] = row
        progress(
            f"{site.name:24}{row['identity']:10.1f}{row['line']:8.1f}{row['gain']:+8.1f}"
            f"{row['residual']:10.3f}"
        )
    gains = [row["gain"] for row in found["sites"].values()]
    found["mean_gain"], found["least_gain"] = fmean(gains), min(gains)
    progress(f"\nmean gain {fmean(gains):+.1f} points, least {min(gains):+.1f}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("weights", type=Path, help="checkpoint of the model")
    parser.add_argument("--model", default="shoal:cifar_resnet20")
    parser.add_argument("--calibration", type=int, default=2000, help="training images to fit on")
    parser.add_argument("--test", type=int, help="test images; all by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = compare(
        options.data,
        options.weights,
        model=options.model,
        calibration=options.calibration,
        test=options.test,
        progress=print,
    )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
