"""Folders of image files, one folder for each class."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shoal.data.assemble import assemble, choose, gibibytes, limit
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.data.images import Frame, ImageFiles, Pixels, decode_all
from shoal.data.split import Indices
from shoal.errors import ConfigError, DataError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
SMALL_SIDE = 64  # pixels: up to here images of one size are taken as they are
DEFAULT_SIDE = 224  # pixels
_SAMPLE = 256  # files whose size is looked at


@dataclass(frozen=True)
class _Files:
    """Image files and their classes: `labels[i]` is the position in `classes`."""

    paths: list[Path]
    labels: Indices

    def at(self, positions: Indices) -> _Files:
        return _Files([self.paths[i] for i in positions], self.labels[positions])

    def without(self, positions: list[int]) -> _Files:
        return self.at(np.setdiff1d(np.arange(len(self.paths)), positions))


@data_sets.register("folder")
def load_folder(root: str, options: Reading) -> DataSet:
    """Return the images of `ROOT/train/<class>/…`, with `ROOT/val` and `ROOT/test` if they exist.

    Classes are in alphabetical order. Without `ROOT/val`, validation images are split off the
    training images. Without `ROOT/train`, the folders of classes lie in `ROOT` itself, and
    validation and test images are split off, 15 % each. "auto" augmentation mirrors and shifts by
    up to an eighth of the side. Images are held in memory if they take at most `max_memory_gib`,
    else they are decoded as they are needed, and cropped at random where the others are shifted.
    """
    if not root:
        raise ConfigError("the data set 'folder' needs its folder: write 'folder:FOLDER'")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(_no_folder(folder))
    try:
        classes, files, notes = _share(folder, options)
    except PermissionError as error:
        raise DataError(f"'{error.filename}' cannot be read: change its permissions") from error
    frame = _frame(files["train"], options)
    count = sum(len(part.paths) for part in files.values())
    in_memory = gibibytes(count, (frame.size, frame.size, 3)) <= options.max_memory_gib
    parts: dict[str, tuple[Pixels | ImageFiles, Indices]] = {}
    for part, chosen in files.items():
        images, broken = _images(chosen, frame, options, in_memory=in_memory)
        kept = chosen.without(broken)
        if not kept.paths:
            raise DataError(f"no {part} image can be decoded: replace the files")
        parts[part] = images, kept.labels
        if broken:
            what, were = ("files", "were") if len(broken) > 1 else ("file", "was")
            shown = [*(str(chosen.paths[i]) for i in broken[:5]), *["…"] * (len(broken) > 5)]
            notes.append(
                f"{len(broken)} {part} {what} could not be decoded and {were} skipped: "
                f"{', '.join(shown)}"
            )
            if part == "train":
                _check_all_classes(kept, classes)
    return assemble(f"folder:{root}", parts, classes, options, notes)


def _share(folder: Path, options: Reading) -> tuple[list[str], dict[str, _Files], list[str]]:
    """Return the classes, the files of each part, and notes; nothing is decoded yet."""
    flat = not (folder / "train").is_dir()
    if flat and ((folder / "val").is_dir() or (folder / "test").is_dir()):
        raise DataError(f"'{folder}' has no folder 'train' beside 'val' or 'test': add it")
    top = folder if flat else folder / "train"
    classes = _class_names(top)
    if len(classes) < 2:
        raise DataError(
            f"'{top}' has only the class '{classes[0]}': a classifier needs at least two folders"
        )
    pool = _list_files(top, classes)
    _check_all_classes(pool, classes)
    names = [part for part in ("val", "test") if not flat and (folder / part).is_dir()]
    given = {part: _same_classes(folder / part, part, classes) for part in names}
    split_val = "val" not in given
    chosen, notes = choose(pool.labels, classes, options, split_val=split_val, split_test=flat)
    files = {part: pool.at(positions) for part, positions in chosen.items()}
    for part, found in given.items():
        count = options.val_samples if part == "val" else None
        positions = np.arange(len(found.paths))
        files[part] = found.at(limit(positions, found.labels, count, part, options.seed))
    return classes, files, notes


def _class_names(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(
            f"'{folder}' has no folder of a class: put the images into '{folder / '<class>'}'"
        )
    return names


def _list_files(folder: Path, classes: Sequence[str]) -> _Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for parent, folders, names in os.walk(folder / name):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            visible = [Path(parent, n) for n in sorted(names) if not n.startswith(".")]
            paths += [path for path in visible if path.suffix.lower() in EXTENSIONS]
        labels += [label] * (len(paths) - len(labels))
    if not paths:
        raise DataError(
            f"'{folder}' has no image in its class folders: "
            f"files must end in {', '.join(sorted(EXTENSIONS))}"
        )
    return _Files(paths, np.asarray(labels, dtype=np.int64))


def _check_all_classes(files: _Files, classes: Sequence[str]) -> None:
    missing = sorted(set(range(len(classes))) - set(files.labels.tolist()))
    if missing:
        name = classes[missing[0]]
        raise DataError(f"class '{name}' has no image to train on: add some, or remove its folder")


def _same_classes(folder: Path, part: str, classes: Sequence[str]) -> _Files:
    names = _class_names(folder)
    for name in sorted(set(names) ^ set(classes)):
        has, lacks = (part, "train") if name in names else ("train", part)
        raise DataError(
            f"class '{name}' is in {has} and not in {lacks} ('{folder.parent}'): "
            "both need the same class folders"
        )
    return _list_files(folder, classes)


def _frame(files: _Files, options: Reading) -> Frame:
    """Return the frame of the images, from the options or from a sample of the files."""
    sizes: set[tuple[int, int]] = set()
    sample = np.linspace(0, len(files.paths) - 1, min(_SAMPLE, len(files.paths))).astype(int)
    for position in sample:
        unreadable = suppress(OSError, ValueError, SyntaxError)  # decoding will name the file
        with unreadable, Image.open(files.paths[position]) as image:  # reads no pixel
            sizes.add(image.size)
    uniform = min(next(iter(sizes))) if len(sizes) == 1 else None
    small = uniform is not None and uniform <= SMALL_SIDE
    size = options.image_size or (uniform if small and uniform else DEFAULT_SIDE)
    # Prepared images lose no border; photographs are cut as networks for ImageNet expect it.
    return Frame(size, size if small or size == uniform else round(size * 256 / 224))


def _images(
    files: _Files, frame: Frame, options: Reading, *, in_memory: bool
) -> tuple[Pixels | ImageFiles, list[int]]:
    """Return the images, decoded now or later, and the positions of files that were skipped."""
    if in_memory:
        return decode_all(files.paths, frame, skip_broken=options.skip_broken)
    broken: list[int] = []
    if options.skip_broken:  # to skip the broken ones they must be known: all are decoded once
        _, broken = decode_all(files.paths, frame, skip_broken=True, keep=False)
    return ImageFiles(files.without(broken).paths, frame, options.workers), broken


def _no_folder(folder: Path) -> str:
    if folder.exists():
        return f"'{folder}' is not a folder: give the folder that holds train/<class>/"
    existing = next(parent for parent in folder.absolute().parents if parent.is_dir())
    missing = folder.absolute().relative_to(existing).parts[0]
    try:
        names = sorted(p.name for p in existing.iterdir() if p.is_dir())
    except OSError:
        names = []
    near = difflib.get_close_matches(missing, names, n=1, cutoff=0.5)
    hint = f"did you mean '{existing / near[0]}'?" if near else f"'{existing}' has no '{missing}'"
    return f"the folder '{folder}' does not exist: {hint}"
