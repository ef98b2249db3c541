"""The work of `shoal compare`: open networks, and measure them in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from shoal.cli.config import run_options
from shoal.cli.source import (
    Source,
    open_network,
    open_result,
    open_trained,
    read_data,
    refuse_shape,
    run_data,
    spelled,
)
from shoal.data import DataSet, Loader
from shoal.errors import ConfigError, ShoalError
from shoal.measure import (
    InRuntime,
    Timing,
    count_macs,
    count_params,
    depth,
    rectifier_evaluations,
)
from shoal.merge.loading import is_run
from shoal.network import Network
from shoal.network.inputs import tensors_of
from shoal.report import Compared, Comparison
from shoal.search.ending import folded
from shoal.search.job_model import is_folder
from shoal.search.run_files import RESULT, TWIN, read_record, readable_twin
from shoal.tasks import Task
from shoal.training import evaluate
from shoal.user_paths import user_path


def with_twins(models: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the models with each run's twin behind it, where it has one and it is not named.

    Of a damaged twin there is a note.
    """
    named = {user_path(text) for text in models}
    found: list[str] = []
    notes: list[str] = []
    for text in models:
        found.append(text)
        folder = user_path(text)
        if (folder / RESULT).exists() and folder / TWIN not in named:
            twin, damage = readable_twin(read_record(folder), whole=True)
            found += [] if twin is None else [str(Path(text) / TWIN)]
            notes += damage
    return found, notes


def open_data(
    models: Sequence[str], asked: str | None, image_size: int | None, device: torch.device
) -> tuple[DataSet | None, list[str]]:
    """Return the data to measure quality on, read as a run among the models does, and notes."""
    found = {text: run_options(user_path(text)) for text in models}
    runs = {text: options for text, options in found.items() if options.get("data")}
    fitting = [options for options in runs.values() if asked in (None, options["data"])]
    names = ("data", "train_samples", "val_fraction", "val_samples", "seed")
    splits = {text: [options.get(name) for name in names] for text, options in runs.items()}
    others = [text for text in splits if splits[text] != next(iter(splits.values()))]
    notes = []
    if others:  # what validates here may have trained them
        notes.append(
            f"{', '.join(others)}: trained on another part of the data, maybe on images that "
            "validate here: trust the test data"
        )
    run = fitting[0] if fitting else {"data": asked}
    if run["data"] is None:
        return None, ["the quality is not measured: give --data"]
    try:
        name, own = run_data(run, asked), next(filter(is_folder, models), models[0])
        return read_data(name, device, run, model=own, image_size=image_size), notes
    except ShoalError as error:
        if asked is not None:
            raise
        return None, [f"the quality is not measured: {error}"]


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
    refuse_shape(models, source, data)
    source = _with_shape(source, models, data)
    networks: dict[str, Network] = {}
    baseline = ""
    for place, text in enumerate(models):
        name = text if text not in models[:place] else f"{text} ({place + 1})"
        if is_run(user_path(text)):
            title, network = f"{name}, merged", open_result(text, trust=source.trust)
        else:
            title = f"{name}, batch norms folded"
            own = Source(trust=source.trust) if is_folder(text) else source
            given = open_network(text, replace(own, checkpoint=weights.get(place)), data)
            if not place:
                networks[f"{name}, as given"] = given.to(device)
            network = folded(given.to(device))
        networks[title] = network.to(device)
        baseline = baseline or title
    (first, one), *others = ((name, _shapes(network)) for name, network in networks.items())
    for name, two in others:
        if one != two:
            raise ConfigError(
                f"{first} takes samples of {spelled(one)} and {name} of {spelled(two)}: compare "
                "networks for the same inputs (--input-shape is for models)"
            )
    return networks, baseline


def _with_shape(source: Source, models: Sequence[str], data: DataSet | None) -> Source:
    """Let models take samples of the shape that the first folder's network takes."""
    folder = next((text for text in models if is_folder(text)), None)
    given = source.input_shape or source.image_size or data
    if given is not None or folder is None or all(map(is_folder, models)):
        return source
    shapes = _shapes(open_trained(folder, trust=source.trust))
    return replace(source, input_shape=shapes[0]) if len(shapes) == 1 else source


def _shapes(network: Network) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape[1:]) for tensor in tensors_of(network.example_inputs(batch=2))]


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
    task: Task,
) -> Comparison:
    """Return the figures of networks, and their latencies at each batch size in each runtime.

    What stands before the baseline computes the same: it is not evaluated again.
    """
    names = list(networks)
    tested = names[names.index(baseline) :]
    parts = (None, None) if data is None else (data.val, data.test)
    qualities = {n: [_quality(networks[n], part, task) for part in parts] for n in tested}
    figures = []
    for name, network in networks.items():
        val, test = qualities.get(name, qualities[baseline])
        inputs = network.example(1)
        macs, relus = count_macs(network, inputs).total, rectifier_evaluations(network, inputs)
        sizes = {"depth": depth(network), "macs": macs, "params": count_params(network),
                 "relus": sum(relus.values())}  # fmt: skip
        figures.append(Compared(name, val, test, network.sites_left, **sizes))
    limits = Timing(min_seconds=seconds, max_seconds=max(60.0, 2 * seconds))
    samples = {size: networks[baseline].example(size) for size in batches}
    made = [InRuntime(name, networks, samples[batches[0]], threads=threads) for name in runtimes]
    latencies = [
        [one.measure(samples[size], baseline, **limits) for one in made] for size in batches
    ]
    measured_on = "" if data is None else data.describe()
    return Comparison(figures, latencies, measured_on, notes, task.quality_name, task.quality_unit)


def _quality(network: Network, data: Loader | None, task: Task) -> float | None:
    return None if data is None else evaluate(network, data, task=task).quality
