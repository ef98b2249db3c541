"""From labelled images to a data set: which sample goes where, and the three loaders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.data.augment import Augment, resolve_augment
from shoal.data.dataset import DataSet, Reading
from shoal.data.facts import facts_of
from shoal.data.frame import Frame, Pixels
from shoal.data.images import ImageFiles, decode_all, resize_all
from shoal.data.layout import Files, check_all_classes, without_images
from shoal.data.loader import ImageLoader
from shoal.data.split import Indices, shuffled, stratified_split, stratified_subset
from shoal.errors import ConfigError, DataError

Labels = NDArray[np.int64]

# The default for colour images: networks for ImageNet and for CIFAR are published with these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

VAL_FRACTION = 0.1  # of the training images
VAL_FRACTION_OF_ALL = 0.15  # where one pool of images serves all three purposes
TEST_FRACTION_OF_ALL = 0.15


def choose(
    labels: Labels,
    classes: Sequence[str],
    options: Reading,
    *,
    split_val: bool,
    split_test: bool,
    val: Indices | None = None,
) -> tuple[dict[str, Indices], list[str]]:
    """Share a pool of labelled training images among the parts of a data set.

    Test is split off first, then validation; the training part is limited to `train_samples` only
    after that, so that its size changes no other part. If test is split off, `val_fraction` is of
    the whole pool. Positions are in random order, so that the first samples of a part are of all
    classes; notes are for the user. `val` are validation positions that were chosen already.
    """
    rest: Indices = np.arange(len(labels))
    parts: dict[str, Indices] = {}

    def split_off(share: float, purpose: str) -> tuple[Indices, Indices]:
        part, others = stratified_split(
            labels[rest], share, seed=options.seed, purpose=purpose, classes=classes
        )
        return rest[part], rest[others]

    fraction = options.val_fraction
    if split_test:
        parts["test"], rest = split_off(TEST_FRACTION_OF_ALL, "test")
        # From a share of the whole pool to a share of what the test part left.
        fraction = (fraction or VAL_FRACTION_OF_ALL) * len(labels) / len(rest)
        if fraction >= 1:
            raise ConfigError(
                f"val_fraction {options.val_fraction} leaves no image to train on: "
                f"{100 * TEST_FRACTION_OF_ALL:.0f} % of the images are for testing"
            )
    if val is not None:
        rest = np.setdiff1d(rest, val)
    elif split_val:
        val, rest = split_off(fraction or VAL_FRACTION, "validation")
    if val is not None:
        parts["val"] = limit(val, labels, options.val_samples, "val", options.seed)
    notes: list[str] = []
    _check_train_samples(options.train_samples, len(rest), classes, notes)
    parts["train"] = limit(rest, labels, options.train_samples, "train", options.seed)
    _note_left_out(options.train_samples, labels[parts["train"]], classes, notes)
    return parts, notes


def limited(
    parts: Mapping[str, Files], classes: Sequence[str], options: Reading, notes: list[str]
) -> dict[str, Files]:
    """Return parts that the data come in, each as large as the options allow; adds notes."""
    counts = {"train": options.train_samples, "val": options.val_samples}
    if "train" in parts:
        check_all_classes(parts["train"], classes)
        _check_train_samples(counts["train"], len(parts["train"].paths), classes, notes)
    chosen = {
        part: files.at(
            limit(np.arange(len(files.paths)), files.labels, counts.get(part), part, options.seed)
        )
        for part, files in parts.items()
    }
    if "train" in chosen:
        _note_left_out(counts["train"], chosen["train"].labels, classes, notes)
    return chosen


def _check_train_samples(
    wanted: int | None, available: int, classes: Sequence[str], notes: list[str]
) -> None:
    if wanted is not None and wanted < len(classes):
        raise DataError(
            f"train_samples={wanted} is fewer than the {len(classes)} classes: "
            "give at least one for each"
        )
    if wanted is not None and wanted > available:
        notes.append(f"train_samples={wanted} asked for, all {available} training images are used")


def _note_left_out(
    wanted: int | None, labels: Labels, classes: Sequence[str], notes: list[str]
) -> None:
    lost = [] if wanted is None else without_images(Files([], labels), classes)
    if lost:
        notes.append(
            f"train_samples leaves {len(lost)} of {len(classes)} classes without an image to train "
            f"on (such as '{lost[0]}'): raise it"
        )


def limit(pool: Indices, labels: Labels, count: int | None, part: str, seed: int) -> Indices:
    """Return `count` of the positions in `pool` (all if None), stratified, in random order."""
    if count is not None:
        pool = pool[stratified_subset(labels[pool], count, seed=seed, purpose=part)]
    return shuffled(pool, seed=seed, purpose=f"{part} order")


def from_arrays(
    name: str,
    images: Pixels,
    labels: Labels,
    classes: Sequence[str],
    options: Reading,
    *,
    test: tuple[Pixels, Labels] | None = None,
    val: Indices | None = None,
    **defaults: Any,
) -> DataSet:
    """Return the data set of images in memory, `[N, H, W, C]`, resized if the options say so.

    The validation part is split off unless it is chosen already, and a test part if none is given;
    `defaults` are those of `assemble`.
    """
    split = {"split_val": True, "split_test": test is None}
    chosen, notes = choose(labels, classes, options, val=val, **split)
    parts = {part: (images[at], labels[at]) for part, at in chosen.items()}
    if test is not None:
        parts["test"] = test
    size = options.image_size or images.shape[1]
    count, shape = sum(len(part) for part, _ in parts.values()), (images.shape[3], size, size)
    gib = gibibytes(count, shape)
    if gib > options.max_memory_gib:
        raise DataError(
            f"{count} images of {'×'.join(map(str, shape))} take {gib:.1f} GiB of memory: "
            f"{options.max_memory_gib:g} GiB are allowed: give fewer train_samples or a smaller "
            "image_size, or the images as files in folders, which are decoded as needed"
        )
    resized = {part: (resize_all(pixels, size), to) for part, (pixels, to) in parts.items()}
    return assemble(name, resized, classes, options, notes, **defaults)


def from_files(
    name: str,
    files: Mapping[str, Files],
    classes: Sequence[str],
    frame: Frame,
    options: Reading,
    notes: Sequence[str],
    *,
    auto: Augment | None = None,
    recut: bool = False,
) -> DataSet:
    """Return the data set of image files, the parts of which are "train", "val" and maybe "test".

    Images are held in memory if they take at most `max_memory_gib`, else they are decoded as they
    are needed; with `recut` those to train on always are, to be cut anew from their files.
    """
    told = list(notes)
    shape = (frame.size, frame.size, 3)
    held = {p: len(f.paths) for p, f in files.items() if not (recut and p == "train")}
    in_memory = gibibytes(sum(held.values()), shape) <= options.max_memory_gib
    parts: dict[str, tuple[Pixels | ImageFiles, Indices]] = {}
    for part, chosen in files.items():
        images, broken = _images(chosen, frame, options, in_memory=in_memory and part in held)
        kept = chosen.without(broken)
        if not kept.paths:
            raise DataError(f"no {part} image can be decoded: replace the files")
        parts[part] = images, kept.labels
        if broken:
            what, were = ("files", "were") if len(broken) > 1 else ("file", "was")
            shown = [*(str(chosen.paths[i]) for i in broken[:5]), *["…"] * (len(broken) > 5)]
            told.append(
                f"{len(broken)} {part} {what} could not be decoded and {were} skipped: "
                f"{', '.join(shown)}"
            )
            if part == "train":  # train_samples may have left a class out before
                _check_classes_left(chosen, kept, classes)
    return assemble(name, parts, classes, options, told, auto=auto)


def _check_classes_left(before: Files, kept: Files, classes: Sequence[str]) -> None:
    """Check that no class lost all images to train on by skipping."""
    had = set(before.labels.tolist())
    lost = sorted(had - set(kept.labels.tolist()))
    if lost:
        raise DataError(
            f"class '{classes[lost[0]]}' has no image to train on that can be decoded: repair its "
            "files, or remove its folder"
        )


def _images(
    files: Files, frame: Frame, options: Reading, *, in_memory: bool
) -> tuple[Pixels | ImageFiles, list[int]]:
    """Return the images, decoded now or later, and the positions of files that were skipped."""
    if in_memory:
        return decode_all(files.paths, frame, skip_broken=options.skip_broken)
    broken: list[int] = []
    if options.skip_broken:  # to skip the broken ones they must be known: all are decoded once
        _, broken = decode_all(files.paths, frame, skip_broken=True, keep=False)
    return ImageFiles(files.without(broken).paths, frame, options.workers), broken


def assemble(
    name: str,
    parts: Mapping[str, tuple[Pixels | ImageFiles, Labels]],
    classes: Sequence[str],
    options: Reading,
    notes: Sequence[str],
    *,
    auto: Augment | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> DataSet:
    """Return the data set of images and labels for "train", "val" and, where there is one, "test".

    Only training is shuffled and augmented. By default "auto" augmentation is that of photographs:
    mirror, and shift by an eighth (4 of 32 pixels).
    """
    loaders: dict[str, ImageLoader] = {}
    for part, (given, labels) in parts.items():
        images = given if isinstance(given, ImageFiles) else given.transpose(0, 3, 1, 2)
        is_train = part == "train"
        flip_crop = Augment(flip=True, crop=max(1, images.shape[-1] // 8))
        augment = resolve_augment(options.transform or options.augment, auto or flip_crop)
        loaders[part] = ImageLoader(
            images,
            labels,
            batch_size=(not is_train and options.eval_batch_size) or options.batch_size,
            mean=options.mean or mean,
            std=options.std or std,
            augment=augment if is_train else None,
            shuffle=is_train,
            seed=options.seed,
            device=options.device,
            num_classes=len(classes),
            classes=classes,
        )
    fields: dict[str, Any] = {**loaders, **facts_of(loaders["train"])}
    return DataSet(name=name, **fields, notes=tuple(notes))


def gibibytes(count: int, shape: Sequence[int]) -> float:
    """Return the memory that `count` uint8 images of `shape` take, in GiB."""
    return count * math.prod(shape) / 2**30
