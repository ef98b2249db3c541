"""Which files of a folder belong to which part and class, by the names of the folders they lie in.

Nothing is opened here. What is not read is counted and named: a data set that is smaller than its
folder looks must not go by without a word.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.data.split import Indices
from shoal.errors import DataError

# Names of the folders of parts, in any case.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_PART_OF = {name: part for part, names in PARTS.items() for name in names}
# What archives and file servers leave in every folder.
_JUNK = {"__macosx", "__pycache__", "@eadir", "lost+found", "$recycle.bin"}

EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".webp"}
EXTENSIONS |= {".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".tga", ".jp2", ".j2k"}


@dataclass(frozen=True)
class Files:
    """Image files and their classes: `labels[i]` is the position in the classes."""

    paths: list[Path]
    labels: Indices

    def at(self, positions: Indices) -> Files:
        """Return the files at `positions`, in that order."""
        return Files([self.paths[i] for i in positions], self.labels[positions])

    def without(self, positions: list[int]) -> Files:
        """Return the other files, in order."""
        return self.at(np.setdiff1d(np.arange(len(self.paths)), positions))


@dataclass(frozen=True)
class Layout:
    """The images of each part; `flat` if the folder is one pool of classes, under "train"."""

    flat: bool
    classes: list[str]
    parts: dict[str, Files]
    notes: list[str]


def read_layout(root: Path) -> Layout:
    """Find the parts, classes and image files of a folder.

    Raises:
        DataError: the folder holds no classes, or parts and classes are not told by their names.
    """
    folders = _part_folders(root)
    flat = not folders
    if not flat and "train" not in folders:
        names = " or ".join(f"'{folder.name}'" for folder in folders.values())
        raise DataError(f"'{root}' has no folder 'train' beside {names}: add it")
    top = folders.get("train", root)
    classes = [folder.name for folder in folders_in(top)]
    if not classes:
        raise DataError(f"'{top}' has no folder of a class: put the images into '{top}/<class>'")
    if len(classes) < 2:
        inner = top / classes[0]
        meant = f", or give '{inner}'" if flat and _part_folders(inner) else ""
        raise DataError(
            f"'{top}' has only the class '{classes[0]}': a classifier needs at least two "
            f"folders{meant}"
        )
    if flat:
        _check_no_parts_as_classes(root, classes)
    notes: list[str] = []
    parts = {}
    for part, folder in (folders or {"train": root}).items():
        if part == "test" and not folders_in(folder):  # as ImageNet's
            notes.append(f"'{folder}' has no folder of a class: what is in it is not read")
            continue
        _check_same_classes(folder, part, classes, top)
        parts[part] = read_classes(folder, classes, part, notes)
    if not flat:
        others = [f.name for f in folders_in(root) if f not in folders.values()]
        loose = [f for f in _visible_files(root) if f.suffix.lower() in EXTENSIONS]
        if others:
            notes.append(
                f"folders that are no part of the data are not read: {_listed(others)} (parts are "
                "named train, val and test)"
            )
        if loose:
            notes.append(_loose(loose, root))
    check_all_classes(parts["train"], classes)
    for part, files in parts.items():
        empty = without_images(files, classes)
        if empty:
            what = "class has" if len(empty) == 1 else "classes have"
            notes.append(f"{len(empty)} {what} no {part} image: {_listed(empty)}")
    return Layout(flat, classes, parts, notes)


def check_all_classes(files: Files, classes: Sequence[str]) -> None:
    """Check that there is an image of every class to train on."""
    missing = without_images(files, classes)
    if missing:
        raise DataError(
            f"class '{missing[0]}' has no image to train on: add some, or remove its folder"
        )


def without_images(files: Files, classes: Sequence[str]) -> list[str]:
    """Return the classes that no image is of, in their order."""
    return [classes[i] for i in sorted({*range(len(classes))} - {*files.labels.tolist()})]


def _part_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each part, in the order train, val, test; none if all are classes."""
    found: dict[str, Path] = {}
    others = False
    for folder in folders_in(root):
        part = _PART_OF.get(folder.name.lower())
        if part is None:
            others = True
        elif part in found:
            raise DataError(
                f"'{root}' has two folders of {part} images, '{found[part].name}' and "
                f"'{folder.name}': rename or remove one"
            )
        else:
            found[part] = folder
    # A railway train may be a class: then it holds images, not folders.
    if others and not any(folders_in(folder) for folder in found.values()):
        return {}
    return {part: found[part] for part in PARTS if part in found}


def _check_no_parts_as_classes(root: Path, classes: Sequence[str]) -> None:
    """Raise `DataError` where folders taken as classes look like parts, or hold the parts."""
    meant: dict[str, str] = {}
    for name in classes:
        for word in re.split(r"[^a-z]+", name.lower()):
            if word in _PART_OF:
                meant.setdefault(_PART_OF[word], name)
    if len(meant) > 1 and "train" in meant:
        shown = _listed([meant[part] for part in PARTS if part in meant])
        raise DataError(
            f"'{root}' has folders that look like parts and not like classes ({shown}): name them "
            "train, val and test, each with the folders of the classes in it"
        )
    inside = [{f.name.lower() for f in folders_in(root / name)} & set(_PART_OF) for name in classes]
    if all(len({_PART_OF[name] for name in names}) > 1 for names in inside):
        raise DataError(
            f"'{root}' has its parts inside the classes ('{classes[0]}/{min(inside[0])}'): put the "
            "images into train/<class>, val/<class> and test/<class>"
        )


def _check_same_classes(folder: Path, part: str, classes: Sequence[str], top: Path) -> None:
    names = [own.name for own in folders_in(folder)]
    if not names:
        raise DataError(
            f"'{folder}' has no folder of a class: put the images into '{folder}/<class>'"
        )
    for name in sorted(set(names) ^ set(classes)):
        has, lacks = (part, "train") if name in names else ("train", part)
        raise DataError(
            f"class '{name}' is in {has} and not in {lacks} ('{top.parent}'): "
            "both need the same class folders"
        )


def read_classes(folder: Path, classes: Sequence[str], part: str, notes: list[str]) -> Files:
    """Return a part's images, also from folders within those of the classes, and add notes."""
    paths: list[Path] = []
    labels: list[int] = []
    unread: list[Path] = []
    for label, name in enumerate(classes):
        for path in _walk(folder / name):
            is_image = path.suffix.lower() in EXTENSIONS
            (paths if is_image else unread).append(path)
        labels += [label] * (len(paths) - len(labels))
    kinds = Counter(path.suffix.lower() or "without a suffix" for path in unread)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if not paths:
        others = f", and it has {listed}" if unread else ""
        raise DataError(
            f"'{folder}' has no image in its class folders: "
            f"files must end in {', '.join(sorted(EXTENSIONS))}{others}"
        )
    if unread:
        what = "file is" if len(unread) == 1 else "files are"
        notes.append(f"{len(unread)} {part} {what} not read: {listed} ({_first(unread)})")
    loose = _visible_files(folder)
    if loose:
        notes.append(_loose(loose, folder))
    deep = [path for path in paths if len(path.relative_to(folder).parts) > 2]
    if deep:
        what = "image lies" if len(deep) == 1 else "images lie"
        notes.append(
            f"{len(deep)} {part} {what} in folders inside a class and count as its own "
            f"({_first(deep)})"
        )
    return Files(paths, np.asarray(labels, dtype=np.int64))


def _walk(folder: Path) -> list[Path]:
    """Return all visible files below a folder; links are followed, and no folder read twice."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        inside = []
        for name in sorted(folders):
            real = os.path.realpath(Path(parent, name))
            if _is_visible(name) and real not in seen:
                seen.add(real)
                inside.append(name)
        folders[:] = inside
        found += [Path(parent, name) for name in sorted(names) if _is_visible(name)]
    return found


def folders_in(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, and links to folders, by name."""
    found = (p for p in folder.iterdir() if p.is_dir() and _is_visible(p.name))
    return sorted(found, key=lambda p: p.name)


def _visible_files(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if not p.is_dir() and _is_visible(p.name))
    return sorted(found, key=lambda p: p.name)


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _JUNK


def _loose(files: Sequence[Path], folder: Path) -> str:
    lie, are = ("file lies", "is") if len(files) == 1 else ("files lie", "are")
    return f"{len(files)} {lie} in no class of '{folder}' and {are} not read ({_first(files)})"


def _first(paths: Sequence[Path]) -> str:
    return f"{'first ' if len(paths) > 1 else ''}'{paths[0]}'"


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = [f"'{name}'" for name in names[:most]]
    return ", ".join([*shown, *["…"] * (len(names) > most)])
