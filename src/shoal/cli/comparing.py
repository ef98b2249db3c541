"""The work of `shoal compare`: open networks, and measure them in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from shoal.cli.config import data_options, run_options
from shoal.cli.results import is_run, open_result, open_trained
from shoal.cli.source import Source, example_inputs, is_folder, open_network
from shoal.data import DataSet, load_data
from shoal.errors import ConfigError, ShoalError
from shoal.measure import InRuntime, Timing, count_macs, count_params, depth
from shoal.network import Network
from shoal.network.inputs import tensors_of
from shoal.report import Compared, Comparison
from shoal.search.gauge import folded
from shoal.training import evaluate

__all__ = ["compared", "open_all", "open_data"]


def open_data(
    models: Sequence[str], asked: str | None, image_size: int | None, device: torch.device
) -> tuple[DataSet | None, list[str]]:
    """Return the data to measure top-1 on, read as a run among the models reads them, and notes."""
    runs = {text: run_options(Path(text).expanduser()) for text in models}
    configs = {text: found for text, found in runs.items() if found.get("data")}
    fitting = [found for found in configs.values() if asked in (None, found["data"])]
    notes = _splits(configs)
    if fitting:
        options = data_options(fitting[0])
        if image_size is not None:
            options["image_size"] = image_size
        try:
            return load_data(fitting[0]["data"], device=device, **options), notes
        except ShoalError as error:
            if asked is not None:
                raise
            return None, [f"top-1 is not measured: {error}"]
    if asked is None:
        return None, ["top-1 is not measured: give --data"]
    return load_data(asked, image_size=image_size, device=device), notes


def _splits(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say where what validates here may have trained another run."""
    names = ("data", "train_samples", "val_fraction", "val_samples", "seed")
    splits = {text: [c.get(name) for name in names] for text, c in configs.items()}
    first = next(iter(splits.values()), None)
    others = [text for text, split in splits.items() if split != first]
    if not others:
        return []
    return [
        f"{', '.join(others)}: trained on another part of the data, maybe on images that validate "
        "here: trust the test accuracy"
    ]


def open_all(
    models: Sequence[str],
    checkpoints: Sequence[Path],
    source: Source,
    data: DataSet | None,
    device: torch.device,
) -> tuple[dict[str, Network], str]:
    """Return the networks by name in the form in which they would be used, and the baseline's name.

    Where the first has batch norms to fold, it stands before the baseline as it was given.
    """
    places = [place for place, text in enumerate(models) if not is_folder(text)]
    if checkpoints and len(checkpoints) != len(places):
        raise ConfigError(
            f"--checkpoint is given {len(checkpoints)} times and there are {len(places)} models "
            "that are no folders: give one for each of these, in their order"
        )
    weights = dict(zip(places, checkpoints, strict=False))
    source = _with_shape(source, models, data)
    networks: dict[str, Network] = {}
    baseline = ""
    for place, text in enumerate(models):
        name = text if text not in models[:place] else f"{text} ({place + 1})"
        if is_run(Path(text).expanduser()):
            title, network = f"{name}, merged", open_result(text)
        else:
            title = f"{name}, batch norms folded"
            given = open_network(text, replace(source, checkpoint=weights.get(place)), data)
            if not place:
                networks[f"{name}, as given"] = given.to(device)
            network = folded(given.to(device))
        networks[title] = network.to(device)
        baseline = baseline or title
    _check_inputs(networks)
    return networks, baseline


def _with_shape(source: Source, models: Sequence[str], data: DataSet | None) -> Source:
    """Let models take samples of the shape that the first folder's network takes."""
    folder = next((text for text in models if is_folder(text)), None)
    given = source.input_shape or source.image_size or data
    if given is not None or folder is None or all(map(is_folder, models)):
        return source
    shapes = _shapes(open_trained(folder))
    return replace(source, input_shape=shapes[0]) if len(shapes) == 1 else source


def _shapes(network: Network) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in tensors_of(network.example_inputs(batch=2))]


def _check_inputs(networks: Mapping[str, Network]) -> None:
    (first, one), *others = ((name, _shapes(network)) for name, network in networks.items())
    for name, two in others:
        if one != two:
            raise ConfigError(
                f"{first} takes samples of {_spelled(one)} and {name} of {_spelled(two)}: compare "
                "networks for the same inputs (--input-shape is for models)"
            )


def _spelled(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join("×".join(map(str, shape)) for shape in shapes)


def compared(
    networks: Mapping[str, Network],
    baseline: str,
    data: DataSet | None,
    *,
    batches: Sequence[int],
    seconds: float,
    threads: int | None,
    runtimes: Sequence[str],
    notes: Sequence[str],
) -> Comparison:
    """Return the figures of networks, and their latencies at each batch size in each runtime.

    What stands before the baseline computes the same: it is not evaluated again.
    """
    names = list(networks)
    tested = names[names.index(baseline) :]
    top1 = {name: _top1(networks[name], data) for name in tested}
    figures = [_figures(name, network, *top1.get(name, top1[baseline]))
               for name, network in networks.items()]  # fmt: skip
    limits = Timing(min_seconds=seconds, max_seconds=max(60.0, 2 * seconds))
    samples = {size: example_inputs(networks[baseline], size) for size in (2, *batches)}
    made = [InRuntime(name, networks, samples[2], threads=threads) for name in runtimes]
    latencies = [
        [one.measure(samples[size], baseline, **limits) for one in made] for size in batches
    ]
    return Comparison(figures, latencies, "" if data is None else data.describe(), notes)


def _top1(network: Network, data: DataSet | None) -> tuple[float | None, float | None]:
    """Return the accuracy on validation and test data."""
    if data is None:
        return None, None
    test = None if data.test is None else evaluate(network, data.test).top1
    return evaluate(network, data.val).top1, test


def _figures(
    name: str, network: Network, top1_val: float | None, top1_test: float | None
) -> Compared:
    return Compared(
        name=name,
        top1_val=top1_val,
        top1_test=top1_test,
        sites_left=network.sites_left,
        depth=depth(network),
        macs=count_macs(network, example_inputs(network, 1)).total,
        params=count_params(network),
    )
