"""`shoal compare`: networks side by side on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import print_json, print_lines, progress_console, result_console
from shoal.errors import ConfigError, ShoalError

if TYPE_CHECKING:
    import torch

    from shoal.cli.source import Source
    from shoal.data import DataSet
    from shoal.measure import SideBySide
    from shoal.network import Network
    from shoal.report import Compared

__all__ = ["compare"]

_BATCHES = (1, 64)


def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B …",
            help="Runs' folders, saved networks, or models: torchvision:NAME, timm:NAME, …. The "
            "others are compared with the first, by default on the data of the first run.",
        ),
    ],
    data: params.Data = None,
    checkpoint: Annotated[
        list[Path] | None,
        option("The trained weights of a model; once for each model, in their order.", metavar="F"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        option("Samples per call; may be repeated. Default: 1 and 64.", min=1),
    ] = None,
    seconds: params.Seconds = 2.0,
    onnx: Annotated[
        bool, option("Measure in ONNX Runtime too.", "--onnx/--no-onnx", show_default=True)
    ] = True,
    threads: params.Threads = None,
    num_classes: params.NumClasses = None,
    image_size: params.ImageSize = None,
    input_shape: params.InputShape = None,
    device: params.Device = None,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> None:
    """Compare networks: top-1, rectifiers left, depth, work, parameters, latency.

    All are timed in turn, round by round. Ratios are against the first with its batch norms folded.

    Example: shoal compare shoal:cifar_resnet20 run --checkpoint resnet20.pth
    """
    from shoal.cli.source import Source, parse_shape, random_weights
    from shoal.report import Comparison, comparison_lines, comparison_tables
    from shoal.report.terminal import print_table
    from shoal.search.compress import working_device

    if len(models) < 2:
        raise ConfigError("there is one network: give two or more to compare")
    where = working_device(device)
    source = Source(None, num_classes, image_size, parse_shape(input_shape))
    console = progress_console()
    with console.status("opening"):
        loaded, notes = _data(models, data, image_size, where)
        networks = _open(models, checkpoint or [], source, loaded, where)
    if not checkpoint and loaded is not None:
        unknown = [text for text in models if random_weights(text, None)]
        notes += [f"{text} has random weights: give --checkpoint" for text in unknown]
    _check_inputs(networks)
    with console.status("evaluating"):
        figures = [_figures(one, loaded) for one in networks]
        if networks[0].as_given:  # it computes what the next one does
            top1 = {name: getattr(figures[1], name) for name in ("top1_val", "top1_test")}
            figures[0] = replace(figures[0], **top1)
    with console.status("measuring"):
        latencies = _latencies(networks, batch or _BATCHES, seconds, threads, onnx)
    described = "" if loaded is None else loaded.describe()
    found = Comparison(figures, latencies, described, notes)
    if as_json:
        print_json(found.to_dict())
        return
    for table in comparison_tables(found):
        print_table(result_console(), table, verbose=verbose)
    print_lines(result_console(), *comparison_lines(found))


@dataclass(frozen=True)
class _Entry:
    """A network that is compared.

    Attributes:
        name: what it is called.
        network: as it is measured.
        baseline: whether the others are compared with it.
        as_given: whether it is the baseline again, without its batch norms folded.
    """

    name: str
    network: Network
    baseline: bool = False
    as_given: bool = False


# ---------------------------------------------------------------------- data


def _data(
    models: Sequence[str], asked: str | None, image_size: int | None, device: torch.device
) -> tuple[DataSet | None, list[str]]:
    """Return the data to measure top-1 on, read as a run among the models reads them, and notes."""
    from shoal.cli.config import data_options, run_options
    from shoal.data import load_data

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


# ---------------------------------------------------------------------- networks


def _open(
    models: Sequence[str],
    checkpoints: Sequence[Path],
    source: Source,
    data: DataSet | None,
    device: torch.device,
) -> list[_Entry]:
    """Return the networks in the form in which they would be used; the first also as given."""
    from shoal.cli.results import is_run, open_result
    from shoal.cli.source import is_folder, open_network
    from shoal.search.ending import folded

    places = [place for place, text in enumerate(models) if not is_folder(text)]
    if checkpoints and len(checkpoints) != len(places):
        raise ConfigError(
            f"--checkpoint is given {len(checkpoints)} times and there are {len(places)} models "
            "that are no folders: give one for each of these, in their order"
        )
    weights = dict(zip(places, checkpoints, strict=False))
    source = _with_shape(source, models, data)
    entries: list[_Entry] = []
    for place, text in enumerate(models):
        name = text if text not in models[:place] else f"{text} ({place + 1})"
        if is_folder(text) and is_run(Path(text).expanduser()):
            network = open_result(text).to(device)
            entries.append(_Entry(f"{name}, merged", network, not place))
            continue
        given = open_network(text, replace(source, checkpoint=weights.get(place)), data)
        given = given.to(device)
        if not place:
            entries.append(_Entry(f"{name}, as given", given, as_given=True))
        entries.append(_Entry(f"{name}, batch norms folded", folded(given), not place))
    return entries


def _with_shape(source: Source, models: Sequence[str], data: DataSet | None) -> Source:
    """Let models take samples of the shape that the first folder's network takes."""
    from shoal.cli.results import open_trained
    from shoal.cli.source import is_folder

    folder = next((text for text in models if is_folder(text)), None)
    given = source.input_shape or source.image_size or data
    if given is not None or folder is None or all(map(is_folder, models)):
        return source
    shapes = _shapes(open_trained(folder))
    return replace(source, input_shape=shapes[0]) if len(shapes) == 1 else source


def _shapes(network: Network) -> list[tuple[int, ...]]:
    """Return the shapes of one sample's tensors."""
    from shoal.network.inputs import tensors_of

    return [tuple(tensor.shape[1:]) for tensor in tensors_of(network.example_inputs(batch=2))]


def _check_inputs(entries: Sequence[_Entry]) -> None:
    first, *others = entries
    for other in others:
        one, two = _shapes(first.network), _shapes(other.network)
        if one != two:
            raise ConfigError(
                f"{first.name} takes samples of {_spelled(one)} and {other.name} of "
                f"{_spelled(two)}: compare networks for the same inputs (--input-shape is for "
                "models)"
            )


def _spelled(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join("×".join(map(str, shape)) for shape in shapes)


# ---------------------------------------------------------------------- figures


def _figures(entry: _Entry, data: DataSet | None) -> Compared:
    from shoal.cli.source import example_inputs
    from shoal.measure import count_macs, count_params, depth
    from shoal.report import Compared
    from shoal.training import evaluate

    network = entry.network
    accuracy: list[float | None] = [None, None]
    if data is not None and not entry.as_given:
        accuracy[0] = evaluate(network, data.val).top1
        accuracy[1] = None if data.test is None else evaluate(network, data.test).top1
    return Compared(
        name=entry.name,
        top1_val=accuracy[0],
        top1_test=accuracy[1],
        sites_left=network.sites_left,
        depth=depth(network),
        macs=count_macs(network, example_inputs(network, 1)).total,
        params=count_params(network),
    )


def _latencies(
    entries: Sequence[_Entry],
    batches: Sequence[int],
    seconds: float,
    threads: int | None,
    onnx: bool,
) -> list[list[SideBySide]]:
    """Return the latencies of all networks, at each batch size, in each runtime."""
    from shoal.cli.source import example_inputs
    from shoal.measure import InRuntime
    from shoal.runtimes import EAGER

    networks = {entry.name: entry.network for entry in entries}
    baseline = next(entry for entry in entries if entry.baseline)
    limits = {"min_seconds": seconds, "max_seconds": max(60.0, 2 * seconds)}
    samples = {size: example_inputs(baseline.network, size) for size in (2, *batches)}
    made = [
        InRuntime(runtime, networks, samples[2], threads=threads)
        for runtime in (EAGER, *["onnxruntime"] * onnx)
    ]
    return [
        [one.measure(samples[size], baseline.name, **limits) for one in made] for size in batches
    ]
