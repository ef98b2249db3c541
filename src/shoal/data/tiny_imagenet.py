"""Tiny-ImageNet-200, as its archive has it or sorted into folders of classes.

The archive's test images have no labels, so its 10,000 validation images are shared: of each class
every second, in the order of their names, is for testing. The papers' own share hangs on the order
of a folder on somebody's disk, so theirs cannot be had again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoal.data.archives import Archive, check_apart, lines_of
from shoal.data.assemble import from_files, limited
from shoal.data.augment import Augment
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.data.frame import Frame
from shoal.data.layout import Files, folders_in, read_classes
from shoal.data.split import Indices
from shoal.errors import DataError
from shoal.options import Options

SIDE = 64  # pixels
_LABELS = "val_annotations.txt"

_TINY = Archive(
    name="tiny_imagenet",
    folder="tiny-imagenet-200",
    needs=("train", "val"),
    source="cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB)",
)


@data_sets.register("tiny_imagenet")
def load_tiny_imagenet(root: str, options: Reading) -> DataSet:
    """Return the training images, and the validation images shared between val and test.

    Classes are the folders of `train`, sorted. A copy whose `val` and `test` hold a folder of each
    class, as a script that is often used leaves them, is read as it is. "auto" augmentation mirrors
    and nothing else, as in Quétu et al. 2024.
    """
    given, _ = _TINY.asked(root, Options)
    folder = _TINY.find(given, options)
    classes = [found.name for found in folders_in(folder / "train")]
    if len(classes) < 2:
        raise DataError(f"'{folder / 'train'}' has no folders of classes: unpack the archive again")
    notes: list[str] = []
    parts = {"train": _images_of(folder / "train", classes, "train", notes)}
    if (folder / "val" / _LABELS).exists():
        labelled = _labelled(folder / "val", classes)
        parts |= {"val": labelled.at(_every_second(labelled, 0))}
        parts |= {"test": labelled.at(_every_second(labelled, 1))}
    else:
        parts |= _sorted_parts(folder, classes, notes)
    chosen = limited(parts, classes, options, notes)
    side = options.image_size or SIDE
    auto = Augment(flip=True)
    return from_files(
        f"tiny_imagenet:{root}", chosen, classes, Frame(side, side), options, notes, auto=auto
    )


def _images_of(folder: Path, classes: Sequence[str], part: str, notes: list[str]) -> Files:
    """Return the images in `CLASS/images`; the boxes beside them are not told of."""
    told: list[str] = []
    files = read_classes(folder, classes, part, told)
    notes += [note for note in told if ".txt" not in note and "count as its own" not in note]
    return files


def _sorted_parts(folder: Path, classes: Sequence[str], notes: list[str]) -> dict[str, Files]:
    """Return val and test of a copy that was sorted into folders of classes."""
    if [found.name for found in folders_in(folder / "val")] != list(classes):
        raise DataError(
            f"'{folder / 'val'}' has neither '{_LABELS}' nor a folder for each class of train: "
            "unpack the archive again"
        )
    parts = {"val": _images_of(folder / "val", classes, "val", notes)}
    test = folder / "test"
    if test.is_dir() and [found.name for found in folders_in(test)] == list(classes):
        return {**parts, "test": _images_of(test, classes, "test", notes)}
    notes.append(f"'{folder}' has no test images with labels: there is no test part")
    return parts


def _labelled(folder: Path, classes: Sequence[str]) -> Files:
    """Return the validation images that the file of labels names, sorted by class and name."""
    number = {name: position for position, name in enumerate(classes)}
    by_class: dict[int, list[str]] = defaultdict(list)
    for count, line in enumerate(lines_of(folder / _LABELS), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in number:
            raise DataError(
                f"line {count} of '{folder / _LABELS}' names no class of train: unpack the archive "
                "again"
            )
        by_class[number[fields[1]]].append(fields[0])
    pairs = [(name, label) for label in sorted(by_class) for name in sorted(by_class[label])]
    labels = np.asarray([label for _, label in pairs], dtype=np.int64)
    files = Files([folder / "images" / name for name, _ in pairs], labels)
    check_apart({"val": files})
    without = {path.name for path in (folder / "images").glob("*.JPEG")} - {n for n, _ in pairs}
    if without:
        raise DataError(
            f"{len(without)} images in '{folder / 'images'}' have no line in '{_LABELS}', such as "
            f"'{min(without)}': unpack the archive again"
        )
    return files


def _every_second(files: Files, first: int) -> Indices:
    """Return the positions of every second image of each class, from its first or second on."""
    members = (np.flatnonzero(files.labels == label) for label in np.unique(files.labels))
    return np.concatenate([positions[first::2] for positions in members])
