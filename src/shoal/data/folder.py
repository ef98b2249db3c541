"""Folders of image files, one folder for each class."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from shoal.data.assemble import choose, from_files, limited
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.data.frame import Frame
from shoal.data.images import large_images_allowed
from shoal.data.layout import Files, read_layout
from shoal.errors import ConfigError, DataError
from shoal.user_paths import user_path

SMALL_SIDE = 64  # pixels: up to here images of one size are taken as they are
DEFAULT_SIDE = 224  # pixels
_SAMPLE = 256  # files whose size is looked at


@data_sets.register("folder")
def load_folder(root: str, options: Reading) -> DataSet:
    """Return the images of `ROOT/train/<class>/…`, with `ROOT/val` and `ROOT/test` if they exist.

    `valid`, `validation` and `dev` stand for `val`, `training` and `testing` for the others, in any
    case. Classes are in alphabetical order. Without `ROOT/val`, validation images are split off the
    training images. Without `ROOT/train`, the folders of classes lie in `ROOT` itself, and
    validation and test images are split off, 15 % each. "auto" augmentation mirrors and shifts by
    up to an eighth of the side. Images are held in memory if they take at most `max_memory_gib`,
    else they are decoded as they are needed, and cropped at random where the others are shifted.
    """
    if not root:
        raise ConfigError("the data set 'folder' needs its folder: write 'folder:FOLDER'")
    folder = user_path(root)
    if not folder.is_dir():
        raise DataError(_no_folder(folder))
    try:
        classes, files, notes = _share(folder, options)
    except PermissionError as error:
        raise DataError(f"'{error.filename}' cannot be read: change its permissions") from error
    frame = _frame(files["train"], options)
    return from_files(f"folder:{root}", files, classes, frame, options, notes)


def _share(folder: Path, options: Reading) -> tuple[list[str], dict[str, Files], list[str]]:
    """Return the classes, the files of each part, and notes; nothing is decoded yet."""
    found = read_layout(folder)
    pool = found.parts["train"]
    split_val = "val" not in found.parts
    chosen, notes = choose(
        pool.labels, found.classes, options, split_val=split_val, split_test=found.flat
    )
    files = {part: pool.at(positions) for part, positions in chosen.items()}
    given = {part: files for part, files in found.parts.items() if part != "train"}
    files |= limited(given, found.classes, options, notes)
    return found.classes, files, [*found.notes, *notes]


def _frame(files: Files, options: Reading) -> Frame:
    """Return the frame of the images, from the options or from a sample of the files."""
    sizes: set[tuple[int, int]] = set()
    sample = np.linspace(0, len(files.paths) - 1, min(_SAMPLE, len(files.paths))).astype(int)
    for position in sample:
        unreadable = suppress(Exception)  # decoding will name the file
        with large_images_allowed(), unreadable, Image.open(files.paths[position]) as image:
            sizes.add(image.size)  # no pixel is read
    uniform = min(next(iter(sizes))) if len(sizes) == 1 else None
    small = uniform is not None and uniform <= SMALL_SIDE
    size = options.image_size or (uniform if small and uniform else DEFAULT_SIDE)
    # Prepared images lose no border; photographs are cut as networks for ImageNet expect it.
    return Frame(size, size if small or size == uniform else round(size * 256 / 224))


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
