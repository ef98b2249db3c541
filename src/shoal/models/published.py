"""What libraries say of the weights they publish: their classes, and how images are prepared."""

from __future__ import annotations

from typing import Any

from shoal.compat import import_timm, import_torchvision
from shoal.models import from_hub
from shoal.models.lookup import ModelSpec


def classes_of(spec: ModelSpec) -> int | None:
    """Return how many classes a library's weights are for; None if its model is no classifier."""
    if spec.kind == "hf":
        return from_hub.classes_of(spec.target)
    known = _timm_config(spec) if spec.kind == "timm" else None
    return 1000 if known is None else known.num_classes or None


def normalisation_of(spec: ModelSpec) -> dict[str, tuple[float, ...]]:
    """Return the `mean` and `std` of the images that the weights were trained on, where known.

    Both are per channel, of pixels from 0 to 1. A model that is not to have its library's weights
    has none.
    """
    if not spec.downloads:
        return {}
    if spec.kind == "hf":
        return from_hub.normalisation_of(spec.target)
    found: Any = None
    if spec.kind == "timm":
        found = _timm_config(spec)
    else:
        api = import_torchvision().models
        name = str(spec.kwargs.get("weights", "DEFAULT")).rpartition(".")[2]
        known = api.get_model_weights(spec.name)
        if name in known.__members__:
            found = known[name].transforms()
    values = {own: tuple(getattr(found, own, None) or ()) for own in ("mean", "std")}
    return values if all(values.values()) else {}


def _timm_config(spec: ModelSpec) -> Any:
    """Return what timm says of a model's weights; None where it says nothing."""
    return import_timm().get_pretrained_cfg(spec.name, allow_unregistered=True)
