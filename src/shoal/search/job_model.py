"""The model of a job: found by its name, completed by what the data tell, and given its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.data import DataSet, data_sets, load_data
from shoal.data.assemble import IMAGENET_MEAN, IMAGENET_STD
from shoal.errors import ConfigError
from shoal.merge.loading import is_pushed
from shoal.models import (
    ModelSpec,
    build_model,
    classes_of,
    complete_spec,
    load_checkpoint,
    normalisation_of,
    parse_spec,
)
from shoal.search.job import Job
from shoal.seeds import preserved_rng, seed_everything
from shoal.user_paths import user_path

Say = Callable[[str], None]
"""Told what the user should know, a line each."""


def is_folder(text: str) -> bool:
    """Return whether the text names a folder that shoal wrote, here or on the hub, and no model."""
    return user_path(text).is_dir() or is_pushed(text.partition("?")[0])


def spec_for(
    text: str,
    data: DataSet | None,
    num_classes: int | None = None,
    *,
    pretrained: bool = False,
    say: Say,
) -> ModelSpec:
    """Return the specification of a model, completed by what the data tell."""
    shape = () if data is None else data.sample_shape
    classes = num_classes or (None if data is None else data.num_classes)
    channels = shape[0] if len(shape) == 3 else None  # else the samples are not images
    spec = parse_spec(text)
    if spec.note:
        say(f"note: {spec.note}")
    return complete_spec(spec, num_classes=classes, in_channels=channels, pretrained=pretrained)


def build(spec: ModelSpec, checkpoint: str | Path | None, seed: int = 0, *, say: Say) -> nn.Module:
    """Build a model and load its weights; what is random in it follows from `seed`."""
    cpu = torch.device("cpu")
    if spec.downloads:
        say(f"note: the weights of {spec.target} are downloaded if need be")
    with preserved_rng(cpu):
        seed_everything(seed, cpu)
        model = build_model(spec)
        notes = () if checkpoint is None else load_checkpoint(model, checkpoint).notes
    for note in notes:
        say(f"note: {note}")
    return model


def read_for(job: Job, device: torch.device) -> tuple[Job, DataSet]:
    """Return a job's data, normalised as those were that its library's weights were trained on.

    What the user says stays, and so does the data's own where the weights ask for ImageNet's. The
    job that comes back says by which numbers its images are read.
    """
    named = job.reading.mean is not None or job.reading.std is not None
    known = job.data.partition(":")[0] in data_sets
    own = usual_normalisation(job.model, job.pretrained) if known and not named else {}
    given = job.reading.to_dict()
    given = {name: value for name, value in given.items() if name not in own}
    data, used = load_normalised(job.data, device, own, given)
    return replace(job, reading=replace(job.reading, **used)), data


def load_normalised(
    name: str, device: torch.device, own: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[DataSet, dict[str, Any]]:
    """Return data by a model's `own` mean and std where options leave them open, and those used.

    Where they do not fit, as of images with other channels, the data's own are taken: the network
    will say so, or has a first layer for them.
    """
    used = {option: value for option, value in own.items() if option not in given}
    try:
        return load_data(name, device=device, **{**used, **given}), used
    except ConfigError:
        if not used:
            raise
        return load_data(name, device=device, **given), {}


def usual_normalisation(text: str, pretrained: bool = False) -> dict[str, Any]:
    """Return the `mean` and `std` that a library's weights ask for; nothing for the data's own."""
    own = normalisation_of(complete_spec(text, pretrained=pretrained))
    usual = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {} if own == usual else dict(own)


def random_weights(text: str, checkpoint: Path | str | None, pretrained: bool = False) -> bool:
    """Return whether the text names a library's model that, as asked for, is not trained."""
    if checkpoint is not None or pretrained or is_folder(text):
        return False
    spec = parse_spec(text)
    return spec.kind in ("shoal", "torchvision", "timm") and not spec.downloads


def new_last_layer(text: str, checkpoint: Path | str | None, data: DataSet) -> bool:
    """Return whether a library's model has published weights for other classes than the data's."""
    spec = parse_spec(text)
    if spec.kind not in ("shoal", "torchvision", "timm", "hf") or checkpoint is not None:
        return False
    own = classes_of(spec)  # the model keeps its layer for data that do not know their classes
    return own != (spec.kwargs.get("num_classes", data.num_classes) or own)


def weights_advice(text: str) -> str:
    """Return which flags give such a model trained weights."""
    return "--checkpoint or --pretrained" if parse_spec(text).published else "--checkpoint"
