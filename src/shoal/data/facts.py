"""What data tell of the networks that are for them: class names and normalisation."""

from __future__ import annotations

from typing import Any

from shoal.data.loader import ImageLoader


def facts_of(loader: Any) -> dict[str, tuple[Any, ...]]:
    """Return the `classes`, `mean` and `std` of a loader, as far as it knows them.

    `classes` are names in the order of the labels; `mean` and `std` are per channel, of pixels from
    0 to 1. A `DataLoader` knows the names where its data set does, as torchvision's do.
    """
    facts: dict[str, tuple[Any, ...]] = {}
    if isinstance(loader, ImageLoader):
        channels = loader.sample_shape[0]  # one number stands for all channels
        facts = {name: (getattr(loader, name) * channels)[:channels] for name in ("mean", "std")}
    while loader is not None and not facts.get("classes"):
        names = getattr(loader, "classes", None)
        if isinstance(names, tuple | list) and names:
            facts["classes"] = tuple(map(str, names))
        loader = getattr(loader, "dataset", None)  # of a loader, or of a part of a data set
    return facts
