"""The model of a job: found by its name, completed by what the data tell, and given its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from shoal.data import DataSet
from shoal.hub import is_on_hub
from shoal.models import ModelSpec, build_model, complete_spec, load_checkpoint, parse_spec
from shoal.seeds import preserved_rng, seed_everything

Say = Callable[[str], None]
"""Told what the user should know, a line each."""


def is_folder(text: str) -> bool:
    """Return whether the text names a folder, here or on the Hugging Face hub, and no model."""
    return is_on_hub(text) or Path(text).expanduser().is_dir()


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
        say(f"note: the pretrained weights of {spec.target} are downloaded if need be")
    with preserved_rng(cpu):
        seed_everything(seed, cpu)
        model = build_model(spec)
        notes = () if checkpoint is None else load_checkpoint(model, checkpoint).notes
    for note in notes:
        say(f"note: {note}")
    return model


def random_weights(text: str, checkpoint: Path | str | None, pretrained: bool = False) -> bool:
    """Return whether the text names a library's model that, as asked for, is not trained."""
    if checkpoint is not None or pretrained or is_folder(text):
        return False
    spec = parse_spec(text)
    return spec.kind in ("shoal", "torchvision", "timm") and not spec.downloads


def new_last_layer(text: str, checkpoint: Path | str | None, data: DataSet) -> bool:
    """Return whether a library's model has published weights for other classes than the data's."""
    library = parse_spec(text).kind in ("shoal", "torchvision", "timm")
    return library and checkpoint is None and data.num_classes != 1000


def weights_advice(text: str) -> str:
    """Return which flags give such a model trained weights."""
    return "--checkpoint or --pretrained" if parse_spec(text).published else "--checkpoint"
