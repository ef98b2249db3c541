"""What stands for MODEL and for D on the command line: names, and folders that shoal wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.cli.config import run_options
from shoal.cli.screen import say
from shoal.data import DataSet, data_sets
from shoal.errors import CaptureError, ConfigError, OptionError, ShoalError
from shoal.merge.loading import is_run, load
from shoal.merge.merge import merge_
from shoal.models import ModelSpec, check_finite
from shoal.models.from_hub import usual_inputs
from shoal.network import Network, capture
from shoal.network.inputs import as_call, tensors_of
from shoal.network.saving import NETWORK_FILE, is_saved, read_meta
from shoal.search.job import data_options
from shoal.search.job_model import (
    build,
    is_folder,
    load_normalised,
    spec_for,
    usual_normalisation,
)
from shoal.search.options import MachineOptions
from shoal.user_paths import user_path

_USERS = ("download", "workers")  # of reading data: the user's to say, not a folder's


@dataclass(frozen=True)
class Source:
    """How a network is made from what the user named; None takes what is usual for it."""

    checkpoint: Path | None = None
    num_classes: int | None = None
    image_size: int | None = None
    input_shape: tuple[int, ...] | None = None  # of one sample
    trust: bool = False  # whether an old folder may run the code that it names
    pretrained: bool = False  # whether to take the weights that the model's library publishes


def open_trained(text: str, step: int | None = None, *, trust: bool = False) -> Network:
    """Return the network of a folder as it was trained: of a run, the result or a step's."""
    if step is not None:
        return load(text, step=step, trust=trust)
    best = "best" if is_saved(user_path(text) / "best") else None
    return load(text, best, trust=trust)


def open_dense(text: str, *, trust: bool = False) -> Network | None:
    """Return the dense network of a run's folder; None for anything else."""
    folder = user_path(text) / "steps" / "000"
    return open_trained(str(folder), trust=trust) if folder.is_dir() else None


def open_result(
    text: str,
    batch: int | None = None,
    runtime: str | None = None,
    step: int | None = None,
    *,
    trust: bool = False,
) -> Network:
    """Return the network of a folder, or of a step of a run, merged.

    A finished run holds its result merged already, for the run's own batch size, runtime and
    machine: this is taken unless another batch size, runtime or step is asked for.
    """
    folder = user_path(text)
    if (batch, runtime, step) == (None, None, None) and (folder / "result.json").exists():
        return load(text, trust=trust)
    named = {f.name for f in fields(MachineOptions)}
    run = {name: value for name, value in run_options(folder).items() if name in named}
    machine = MachineOptions.from_dict(run)
    network = open_trained(text, step, trust=trust)
    merge_(network, batch=batch or machine.batches, runtime=runtime or machine.runtimes)
    return network


def open_usable(text: str, source: Source) -> Network:
    """Return the network as it would be used: of a run, its result merged.

    What decides the shape of a model is not for a folder; see `refuse_shape`.
    """
    if is_run(user_path(text)):
        return open_result(text, trust=source.trust)
    return open_network(text, Source(trust=source.trust) if is_folder(text) else source)


def refuse_shape(models: Sequence[str], source: Source, data: DataSet | None = None) -> None:
    """Raise `ConfigError` for an option of a model's shape where all that is named are folders.

    With data the size of images is theirs.
    """
    if not all(map(is_folder, models)):
        return
    given = {
        "--num-classes": source.num_classes,
        "--image-size": source.image_size if data is None else None,
        "--input-shape": source.input_shape,
    }
    for flag in (flag for flag, value in given.items() if value is not None):
        raise ConfigError(f"'{models[0]}' is a folder with a network of its own: omit {flag}")


def normalised(text: str, pretrained: bool = False) -> dict[str, Any]:
    """Return the `mean` and `std` by which a network's images are normalised, where they are known.

    A folder's network says them itself, a library's weights by what the library says; where
    nothing is known the data have their own.
    """
    if not is_folder(text):
        return usual_normalisation(text, pretrained)
    folder = user_path(text)
    if not folder.is_dir():  # on the hub: its files are few, and kept once they are here
        meta = load(text).meta
    else:
        places = (place for place in (folder, folder / "best") if (place / NETWORK_FILE).exists())
        meta = next(map(read_meta, places), {})
    return {name: tuple(meta[name]) for name in ("mean", "std") if meta.get(name)}


def run_data(run: Mapping[str, Any], asked: str | None) -> str:
    """Return the data that were asked for, or else a run's, unless code would have to make them."""
    name = asked or run.get("data")
    if not name:
        raise ConfigError("no data are given: add --data D")
    if asked is None and str(name).partition(":")[0] not in data_sets:
        raise ConfigError(
            f"the run's data come from '{name}', and code that a folder names is never run: "
            "give --data"
        )
    return str(name)


def read_data(
    name: str,
    device: torch.device,
    run: Mapping[str, Any] | None = None,
    *,
    model: str | None = None,
    pretrained: bool = False,
    **options: Any,
) -> DataSet:
    """Return the data, read as a run's options say, and with what else is given over them.

    Where neither says how pixels are normalised, what is known of the model does. A factory reads
    as it likes: only what is given here is asked of it. What the user should know is printed.
    """
    usual: dict[str, Any] = {}
    own: dict[str, Any] = {}
    if name.partition(":")[0] in data_sets:
        found = data_options(run or {})
        usual = {k: v for k, v in found.items() if v is not None and k not in _USERS}
        own = {} if model is None else normalised(model, pretrained)
    given = {**usual, **{key: value for key, value in options.items() if value is not None}}
    data, _ = load_normalised(name, device, own, given)
    say(*(f"note: {note}" for note in data.notes))
    return data


def open_network(text: str, source: Source, data: DataSet | None = None) -> Network:
    """Return the network that a folder holds, or the capture of the model that a name builds.

    The data decide the number of classes and the example inputs, where given.
    """
    if is_folder(text):
        if source.pretrained:
            raise ConfigError(f"'{text}' is a folder with weights of its own: omit --pretrained")
        if source.checkpoint is not None:
            raise ConfigError(f"'{text}' is a folder with weights of its own: omit --checkpoint")
        refuse_shape([text], source, data)
        network = open_trained(text, trust=source.trust)
        if data is not None:
            _check_samples(network, text, data)
        return network
    if source.checkpoint is not None and source.pretrained:
        raise ConfigError("both checkpoint and pretrained are given: weights come from one of them")
    spec = spec_for(text, data, source.num_classes, pretrained=source.pretrained, say=say)
    model = build(spec, source.checkpoint, say=say)
    check_finite(model)
    if data is not None:
        return _captured(model, data.example_inputs(2), guessed=False)
    if spec.kind == "hf":
        inputs = usual_inputs(spec.target, model, source.input_shape, source.image_size)
        return _captured(model, inputs, guessed=source.input_shape is None)
    channels, height, width = _usual_shape(spec, model)
    size = source.image_size
    shape = source.input_shape or (channels, size or height, size or width)
    inputs = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return _captured(model, inputs, guessed=source.input_shape is None)


def _check_samples(network: Network, text: str, data: DataSet) -> None:
    """Raise `ConfigError` unless a saved network can be called with the samples of the data."""
    own = [tuple(value.shape[1:]) for value in network.example_inputs(2)[0]]
    try:
        given = data.example_inputs(2)
        args, kwargs = as_call(given)
        with torch.no_grad():
            network(*args, **kwargs)
    except (RuntimeError, ShoalError) as error:
        mine, theirs = (spelled(shapes) or "another kind" for shapes in (own, [data.sample_shape]))
        raise ConfigError(
            f"'{text}' takes samples of {mine} and the data give {theirs}: give the data it was "
            "made for, or --image-size"
        ) from error


def spelled(shapes: Iterable[Iterable[int]]) -> str:
    """Return shapes as a message says them, such as 3×32×32."""
    return " and ".join("×".join(map(str, shape)) for shape in shapes)


def _usual_shape(spec: ModelSpec, model: nn.Module) -> tuple[int, ...]:
    """Return the shape (C, H, W) of the images that such a model usually takes."""
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if spec.kind == "timm" and isinstance(config, dict) and "input_size" in config:
        channels = spec.kwargs.get("in_chans", config["input_size"][0])
        return (int(channels), *map(int, config["input_size"][1:]))
    digits = spec.kind == "shoal" and spec.name.startswith("digits")
    size = 8 if digits else 32 if spec.kind == "shoal" else 224
    return (int(spec.kwargs.get("in_channels", 1 if digits else 3)), size, size)


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Read the shape of a sample, "3,32,32" or "3x32x32"."""
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise OptionError("input_shape", text, "the sizes of one sample, such as 3,224,224")
    return shape


def _captured(model: nn.Module, inputs: Any, *, guessed: bool) -> Network:
    try:
        return capture(model, inputs).copy()
    except CaptureError as error:
        if not guessed:
            raise
        shapes = spelled(tensor.shape[1:] for tensor in tensors_of(inputs))
        raise CaptureError(
            f"{error} (tried with an input of {shapes}: if the model takes "
            "another, give --input-shape or --data)"
        ) from error
