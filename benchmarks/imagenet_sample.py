"""EfficientNet-Lite0 on ImageNet without any training: scoring times, and accuracy against latency.

    python benchmarks/imagenet_sample.py path/to/imagenet-sample path/to/lite0.safetensors
    python benchmarks/imagenet_sample.py … --only-scoring

The folder holds images as CLASS.jpg, 224 pixels, the number of the class as the file's name. Every
other image (of 500: 250) is there to score, to fit and to choose; the others are only reported.
Each criterion is timed beside a plain pass over the same images right before it. The search then
collapses, linearizes, drops and merges, and trains nothing; each of its networks, merged, is timed
beside the dense one, folded, in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import shoal
from shoal.data import ImageLoader
from shoal.files import write_file
from shoal.models import load_checkpoint, load_model
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.report.markdown import markdown
from shoal.report.table import Column, Quantity, Row, Table, text_columns
from shoal.search.front import front

MEAN, STD = 127.0 / 255.0, 128.0 / 255.0
CRITERIA = ("entropy", "fit_residual", "line_loss", "collapse_loss")


def loaders(folder: Path, batch: int) -> tuple[ImageLoader, ImageLoader]:
    """Return the images to choose by and those to report, in turns."""
    files = sorted(folder.glob("*.jpg"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    images, labels = pixels.transpose(0, 3, 1, 2), np.array([int(file.stem) for file in files])

    def loader(part: slice) -> ImageLoader:
        return ImageLoader(
            np.ascontiguousarray(images[part]),
            labels[part],
            batch_size=batch,
            mean=MEAN,
            std=STD,
            num_classes=1000,
        )

    return loader(slice(0, None, 2)), loader(slice(1, None, 2))


def scoring_times(network: Network, data: ImageLoader) -> dict[str, Any]:
    """Return seconds of each criterion, and of a plain pass before it."""

    def plain() -> float:
        start = time.perf_counter()
        with eval_mode(network), torch.inference_mode():
            for images, _ in data:
                network(images)
        return time.perf_counter() - start

    plain()
    found = {}
    for name in CRITERIA:
        before, start = plain(), time.perf_counter()
        scores = shoal.score(network, data, criterion=name)
        seconds = time.perf_counter() - start
        found[name] = {"seconds": seconds, "plain": before, "places": len(scores)}
        print(f"{name}: {seconds:.1f} s, plain pass {before:.1f} s", flush=True)
    return found


def scoring_table(found: dict[str, Any]) -> Table:
    """Return the seconds of each criterion."""
    return Table(
        "scoring all places",
        (*text_columns("criterion"), Column("places"), Column("seconds"), Column("plain pass, s")),
        tuple(
            Row((name, one["places"], f"{one['seconds']:.1f}", f"{one['plain']:.1f}"))
            for name, one in found.items()
        ),
    )


def tables(found: dict[str, Any]) -> str:
    """Return both tables as Markdown."""
    columns = (
        Column("step"),
        *text_columns("operation"),
        Column("chosen by, %"),
        Column("reported, %"),
        Column("depth"),
        Column("work, M MACs"),
        Column("dense / this"),
    )
    rows = [
        Row(
            (
                step["step"],
                step["operation"],
                f"{step['top1_val']:.1f}",
                f"{step['top1_test']:.1f}",
                step["depth"],
                f"{step['macs'] / 1e6:.1f}",
                Quantity(
                    step["latency_ratio"],
                    "×",
                    *step["interval"],
                    trusted=not step["latency_doubt"],
                ),
            )
        )
        for step in found["front"]
    ]
    notes = (
        "the front: no other step is at least as accurate on the images chosen by, and as fast, at "
        f"batch 1 in {found['runtime']}; against dense, its norms folded",
    )
    searched = Table("accuracy against latency", columns, tuple(rows), notes)
    return "\n".join(map(markdown, (scoring_table(found["scoring"]), searched)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/imagenet_sample"))
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--max-drop", type=float, default=12.0, help="points, where it ends")
    parser.add_argument("--only-scoring", action="store_true", help="time the criteria alone")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    model = load_model("timm:tf_efficientnet_lite0")
    load_checkpoint(model, options.weights)
    chosen_by, reported = loaders(options.images, options.batch)
    network = shoal.capture(model.eval(), next(iter(chosen_by))[0][:2])
    scoring = scoring_times(network, chosen_by)
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    machine = f"{machine}, PyTorch {torch.__version__}"
    if options.only_scoring:
        print(f"{machine}\n\n{markdown(scoring_table(scoring))}")
        return
    result = shoal.compress(
        network,
        chosen_by,
        chosen_by,
        test=reported,
        out=options.out / "run",
        max_drop=options.max_drop,
        epochs=0,
        runtime=options.runtime,
        samples=250,
        step_saving=0.03,
    )
    steps = [
        {**step.to_dict(), "interval": [step.latency_ratio_low, step.latency_ratio_high]}
        for step in front(result.steps)
    ]
    found = {
        "machine": machine,
        "runtime": options.runtime,
        "scoring": scoring,
        "front": [{k: v for k, v in step.items() if k != "scores"} for step in steps],
        "seconds": sum(step.seconds for step in result.steps),
        "end": result.latency.to_dict(),
    }
    page = f"{found['machine']}; search {found['seconds']:.0f} s\n\n{tables(found)}"
    write_file(options.out / "imagenet_sample.json", json.dumps(found, indent=2) + "\n")
    write_file(options.out / "imagenet_sample.md", page)
    print(page)


if __name__ == "__main__":
    main()
