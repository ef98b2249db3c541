"""From labelled images to a data set: which sample goes where, and the three loaders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.data.augment import Augment, resolve_augment
from shoal.data.base import LoaderOptions, SeededLoader
from shoal.data.dataset import DataSet, Reading
from shoal.data.images import Pixels
from shoal.data.loader import ImageLoader
from shoal.data.split import Indices, shuffled, stratified_split, stratified_subset
from shoal.errors import ConfigError, DataError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Choice",
    "check_memory",
    "choose",
    "gibibytes",
    "image_loader",
    "limit",
    "loader_options",
    "make_data_set",
    "mirrored",
]

# The default for colour images: networks for ImageNet and for CIFAR are published with these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

VAL_FRACTION = 0.1  # of the training images
VAL_FRACTION_OF_ALL = 0.15  # where one pool of images serves all three purposes
TEST_FRACTION_OF_ALL = 0.15


@dataclass(frozen=True)
class Choice:
    """Which samples of a pool serve what: positions in random order, and notes for the user.

    The order is random so that the first samples of a part are of all classes.
    """

    parts: dict[str, Indices]
    notes: tuple[str, ...]


def choose(
    labels: NDArray[np.int64],
    classes: Sequence[str],
    options: Reading,
    *,
    split_val: bool,
    split_test: bool,
) -> Choice:
    """Share a pool of labelled training images among the parts of a data set.

    Test is split off first, then validation; the training part is limited to `train_samples` only
    after that, so that its size changes no other part.

    Args:
        labels: the class of every image, `[N]`.
        classes: the names of the classes.
        options: seed, fractions and limits.
        split_val: whether a validation part is needed.
        split_test: whether a test part is needed; then `val_fraction` is of the whole pool.

    Raises:
        DataError: a class has too few images, or there are fewer `train_samples` than classes.
    """
    rest: Indices = np.arange(len(labels))
    parts: dict[str, Indices] = {}
    fraction = options.val_fraction
    if split_test:
        test, rest = _split(rest, labels, TEST_FRACTION_OF_ALL, "test", classes, options.seed)
        parts["test"] = test
        # From a share of the whole pool to a share of what the test part left.
        fraction = (fraction or VAL_FRACTION_OF_ALL) * len(labels) / len(rest)
        if fraction >= 1:
            raise ConfigError(
                f"val_fraction {options.val_fraction} leaves no image to train on: "
                f"{TEST_FRACTION_OF_ALL:.0%} of the images are for testing"
            )
    if split_val:
        val, rest = _split(
            rest, labels, fraction or VAL_FRACTION, "validation", classes, options.seed
        )
        parts["val"] = limit(val, labels, options.val_samples, "val", options.seed)
    notes: tuple[str, ...] = ()
    wanted = options.train_samples
    if wanted is not None and wanted < len(classes):
        raise DataError(
            f"train_samples={wanted} is fewer than the {len(classes)} classes: "
            "give at least one for each"
        )
    if wanted is not None and wanted > len(rest):
        notes = (f"train_samples={wanted} asked for, all {len(rest)} training images are used",)
    parts["train"] = limit(rest, labels, wanted, "train", options.seed)
    return Choice(parts, notes)


def limit(
    pool: Indices, labels: NDArray[np.int64], count: int | None, part: str, seed: int
) -> Indices:
    """Return `count` of the positions in `pool` (all if None), stratified, in random order."""
    if count is not None:
        pool = pool[stratified_subset(labels[pool], count, seed=seed, purpose=part)]
    return shuffled(pool, seed=seed, purpose=f"{part} order")


def _split(
    pool: Indices,
    labels: NDArray[np.int64],
    fraction: float,
    purpose: str,
    classes: Sequence[str],
    seed: int,
) -> tuple[Indices, Indices]:
    part, rest = stratified_split(
        labels[pool], fraction, seed=seed, purpose=purpose, classes=classes
    )
    return pool[part], pool[rest]


def mirrored(image_size: int) -> Augment:
    """Return what "auto" is for photographs: mirror, and shift by an eighth (4 of 32 pixels)."""
    return Augment(flip=True, crop=max(1, image_size // 8))


def loader_options(
    part: str,
    options: Reading,
    *,
    auto: Augment,
    num_classes: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> LoaderOptions:
    """Return a part's options of the loader: only training is shuffled and augmented."""
    train = part == "train"
    size = options.batch_size if train else options.eval_batch_size or options.batch_size
    return {
        "batch_size": size,
        "mean": options.mean or mean,
        "std": options.std or std,
        "augment": resolve_augment(options.transform or options.augment, auto) if train else None,
        "shuffle": train,
        "seed": options.seed,
        "device": options.device,
        "num_classes": num_classes,
    }


def image_loader(pixels: Pixels, labels: NDArray[np.int64], options: LoaderOptions) -> ImageLoader:
    """Return the loader of a part whose pixels `[N, H, W, C]` are in memory."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
    return ImageLoader(images, labels, **options)


def make_data_set(
    name: str,
    loaders: Mapping[str, SeededLoader],
    classes: Sequence[str],
    notes: Sequence[str],
) -> DataSet:
    """Return the data set of loaders by part."""
    train = loaders["train"]
    channels = train.sample_shape[0]
    return DataSet(
        name=name,
        train=train,
        val=loaders["val"],
        test=loaders.get("test"),
        classes=tuple(classes),
        mean=train.mean if len(train.mean) == channels else train.mean * channels,
        std=train.std if len(train.std) == channels else train.std * channels,
        notes=tuple(notes),
    )


def gibibytes(count: int, shape: Sequence[int]) -> float:
    """Return the memory that `count` uint8 images of `shape` take, in GiB."""
    return count * math.prod(shape) / 2**30


def check_memory(count: int, shape: Sequence[int], options: Reading) -> None:
    """Raise `DataError` if so many images of `shape` take more memory than allowed."""
    gib = gibibytes(count, shape)
    if gib > options.max_memory_gib:
        raise DataError(
            f"{count} images of {'×'.join(map(str, shape))} take {gib:.1f} GiB of memory: "
            f"{options.max_memory_gib:g} GiB are allowed: give fewer train_samples or a smaller "
            "image_size, or the images as files in folders, which are decoded as needed"
        )
