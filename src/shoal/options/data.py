"""How a data set is read."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.options.base import Options, at_least, between, option

__all__ = ["DataOptions"]


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """How a data set is read and split.

    Splits, subsets, order and augmentation depend on `seed` alone: the same seed gives the same
    numbers in every run, process and version of Python.
    """

    train_samples: int | None = option(
        None,
        "Train on this many images only, the same share of each class.",
        check=at_least(1),
        default_text="all",
    )
    val_fraction: float | None = option(
        None,
        "The share of the training images that is kept for validation, where the data have no "
        "validation part. By default 0.1, or 0.15 of all images where a test part is split off "
        "as well.",
        check=between(0, 1, ends="()"),
        default_text="0.1",
    )
    val_samples: int | None = option(
        None,
        "Validate on this many images only. With 500, one image is 0.2 points: keep it well above "
        "100 / max_drop.",
        check=at_least(1),
        default_text="all",
    )
    batch_size: int = option(
        128,
        "Images per training step, over all processes. Lower it if memory runs out, and change "
        "the learning rate in proportion.",
        check=at_least(1),
    )
    eval_batch_size: int | None = option(
        None,
        "Images per batch when evaluating; changes speed only.",
        check=at_least(1),
        decides=False,
        default_text="the batch size",
    )
    image_size: int | None = option(
        None,
        "Height and width of the images. Use what the network was trained on.",
        unit="pixels",
        check=at_least(1),
        default_text="the data's own",
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Subtracted from each channel of pixels in [0, 1]. Use what the network was trained with.",
        default_text="the data's own",
    )
    std: tuple[float, ...] | None = option(
        None, "Each channel is divided by it, as for the mean.", default_text="the data's own"
    )
    augment: str = option(
        "auto",
        "Random changes to training images: 'none', 'flip_crop', 'shift', or 'auto', the data's "
        "own.",
    )
    skip_broken: bool = option(
        False, "Skip images that cannot be decoded, and name them, instead of stopping."
    )
    download: bool = option(False, "Download the data if they are missing.", decides=False)
    max_memory_gib: float = option(
        4.0,
        "Images that need more memory are decoded when they are needed.",
        unit="GiB",
        check=at_least(0),
        decides=False,
        flag=False,
    )
    workers: int = option(
        2,
        "Processes that decode images that do not fit in memory.",
        check=at_least(0),
        decides=False,
    )
    seed: int = option(
        0, "Decides all that is random: the same seed gives the same result.", check=at_least(0)
    )
