"""Merge a network, quantize it to int8 with ONNX Runtime, and measure what that is worth here.

    python examples/quantize.py                  a digits network, trained on the spot
    python examples/quantize.py --run runs/mine  the result of `shoal compress … --out runs/mine`

Accuracy is measured on the test images; the ranges of the activations are calibrated on training
images. The latencies of one batch size come from the same interleaved rounds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.console import Console
from rich.table import Table

import shoal
from shoal.cli.config import data_options, run_options
from shoal.data import DataSet, load_data, split_batch
from shoal.measure import Latency, latency_ratio, measure_latency
from shoal.merge.merge import merge_
from shoal.runtimes import export
from shoal.runtimes.onnx_session import OnnxRunner
from shoal.training import fit

BATCHES = (1, 64)


@dataclass(frozen=True)
class Row:
    """What one form of the network is worth: accuracy in percent, latency by batch size."""

    name: str
    top1: float
    bytes: int | None
    latency: dict[int, Latency]


class TrainingImages(quantization.CalibrationDataReader):
    """Feeds training images, without augmentation, to the calibration."""

    def __init__(self, runner: OnnxRunner, loader: Any, images: int) -> None:
        self._feeds = self._read(runner, loader.plain(), images)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by input name, or None at the end."""
        return next(self._feeds, None)

    @staticmethod
    def _read(runner: OnnxRunner, loader: Iterable[Any], images: int) -> Any:
        seen = 0
        for item in loader:
            batch = split_batch(item)
            yield runner.feed(*batch.args, **batch.kwargs)
            seen += batch.size
            if seen >= images:
                return


def quantize(source: Path, target: Path, data: DataSet, images: int, reduce_range: bool) -> None:
    """Write `target`, the int8 form of the network in `source` (both .onnx).

    Args:
        source: the network in fp32.
        target: where the int8 network goes.
        data: its training images calibrate the ranges.
        images: how many of them.
        reduce_range: use 7 bits for weights: x86 without VNNI overflows with 8.
    """
    prepared = target.with_suffix(".prepared.onnx")
    logging.getLogger().setLevel(logging.ERROR)  # its hints go through the root logger
    quant_pre_process(source, prepared)  # folds the batch norms and infers the shapes
    quantization.quantize_static(
        prepared,
        target,
        TrainingImages(OnnxRunner(source), data.train, images),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )
    prepared.unlink()


def accuracy(model: Callable[..., Any], loader: Any) -> float:
    """Return the top-1 accuracy in percent."""
    right = total = 0
    for item in loader.plain():
        batch = split_batch(item)
        with torch.inference_mode():
            logits = model(*batch.args, **batch.kwargs)
        right += int((logits.argmax(1) == batch.target).sum())
        total += batch.size
    return 100.0 * right / total


def compare(
    network: shoal.Network,
    data: DataSet,
    folder: Path,
    *,
    images: int = 512,
    reduce_range: bool = False,
    min_seconds: float = 2.0,
) -> list[Row]:
    """Merge, export and quantize a network into `folder`; measure it in fp32 and in int8."""
    network = network.copy().eval().to(memory_format=torch.channels_last)
    merge_(network)
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    export(network, fp32, data.example_inputs())
    quantize(fp32, int8, data, images, reduce_range)
    runners = {"fp32, ONNX Runtime": OnnxRunner(fp32), "int8, ONNX Runtime": OnnxRunner(int8)}
    eager = "fp32, PyTorch eager"
    latency: dict[int, dict[str, Latency]] = {}
    for size in BATCHES:
        inputs = data.example_inputs(batch=size)
        models = {eager: network, **runners}
        latency[size] = measure_latency(models, inputs, min_seconds=min_seconds)
    test = data.test if data.test is not None else data.val
    sizes = {"fp32, ONNX Runtime": fp32, "int8, ONNX Runtime": int8}
    return [
        Row(
            name,
            accuracy(model, test),
            sizes[name].stat().st_size if name in sizes else None,
            {size: latency[size][name] for size in BATCHES},
        )
        for name, model in {eager: network, **runners}.items()
    ]


def digits_network(epochs: int) -> tuple[shoal.Network, DataSet]:
    """Return a digits network, trained, with a third of its rectifiers made lines, and its data."""
    data = load_data("digits", batch_size=64, eval_batch_size=256)
    torch.manual_seed(0)
    model = shoal.models.digits_resnet()
    fit(model, data.train, epochs=epochs, recipe={"lr": 0.1}, device="cpu")
    network = shoal.capture(model, data.example_inputs())
    print(f"trained: {accuracy(network.eval(), data.val):.2f} % of the validation images are right")
    scores = shoal.score(network, data.train)
    lowest = scores.lowest(len(scores) // 3)
    shoal.linearize_(network, lowest, loader=data.train)
    fit(network, data.train, epochs=max(1, epochs // 4), device="cpu")
    right = accuracy(network.eval(), data.val)
    print(f"{len(lowest)} of {len(scores)} rectifiers linearized, fine-tuned: {right:.2f} %")
    return network, data


def network_of_run(folder: Path) -> tuple[shoal.Network, DataSet]:
    """Return the result of a run and its data."""
    options = run_options(folder)
    return shoal.load(folder, "best"), load_data(options["data"], **data_options(options))


def table(rows: list[Row]) -> Table:
    """Return the figures as a table with units; ratios are by pairs of rounds."""
    shown = Table("network", "test top-1 (%)", "file (kB)")
    shown.caption = "latency: median of interleaved rounds; ×: the first row's over this one's"
    for size in BATCHES:
        shown.add_column(f"batch {size} (ms)")
        shown.add_column("×")
    for row in rows:
        cells = [row.name, f"{row.top1:.2f}", f"{row.bytes / 1e3:.0f}" if row.bytes else ""]
        for size in BATCHES:
            ratio = latency_ratio(rows[0].latency[size], row.latency[size])
            cells += [f"{row.latency[size].median_ms:.3f}", f"{ratio.median:.2f}"]
        shown.add_row(*cells)
    return shown


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="folder of a finished `shoal compress`")
    parser.add_argument("--epochs", type=int, default=8, help="training of the digits network")
    parser.add_argument("--images", type=int, default=512, help="training images for calibration")
    parser.add_argument(
        "--reduce-range", action="store_true", help="7-bit weights, for x86 without VNNI"
    )
    parser.add_argument("--out", type=Path, help="keep the .onnx files in this folder")
    parser.add_argument("--min-seconds", type=float, default=2.0, help="of measuring, at least")
    options = parser.parse_args(argv)
    network, data = network_of_run(options.run) if options.run else digits_network(options.epochs)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = compare(
            network,
            data,
            folder,
            images=options.images,
            reduce_range=options.reduce_range,
            min_seconds=options.min_seconds,
        )
    Console(width=120).print(table(rows))
    return rows


if __name__ == "__main__":
    main()
