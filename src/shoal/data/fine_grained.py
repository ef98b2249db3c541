"""Flowers-102, the Describable Textures and FGVC-Aircraft, with their authors' own splits.

Transforms are those of Quétu et al. 2024 (EASIER) and of its code, where the paper says less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shoal.data.archives import Archive, check_apart, lines_of
from shoal.data.assemble import from_files, limited
from shoal.data.augment import Augment
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.data.frame import Cut, Frame
from shoal.data.layout import Files
from shoal.data.split import Indices
from shoal.errors import DataError, one_line
from shoal.options import Options, at_least, between, one_of, option

SIDE = 224  # pixels
PARTS = ("train", "val", "test")

_FLOWERS = Archive(
    name="flowers102",
    folder="flowers-102",
    needs=("jpg", "imagelabels.mat", "setid.mat"),
    source="102flowers.tgz, imagelabels.mat and setid.mat from "
    "robots.ox.ac.uk/~vgg/data/flowers/102 (345 MB)",
    reader="Flowers102",
)
_DTD = Archive(
    name="dtd",
    folder="dtd/dtd",
    needs=("images", "labels"),
    source="robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz (625 MB)",
    reader="DTD",
)
_AIRCRAFT = Archive(
    name="aircraft",
    folder="fgvc-aircraft-2013b/data",
    needs=("images", "variants.txt", "images_variant_train.txt"),
    source="robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz (2.8 GB)",
    reader="FGVCAircraft",
)


@dataclass(frozen=True, kw_only=True)
class FlowersOptions(Options):
    """What the flowers can be told."""

    mix: float = option(
        0.8,
        "MixUp or CutMix of training images, one of the two for each batch: the α of the beta "
        "distribution that says how much; 0 for none.",
        check=at_least(0),
    )


@dataclass(frozen=True, kw_only=True)
class TexturesOptions(FlowersOptions):
    """What the textures can be told."""

    partition: int = option(1, "Which of the ten splits, 1 to 10.", check=between(1, 10))


@dataclass(frozen=True, kw_only=True)
class AircraftOptions(Options):
    """What the aircraft can be told."""

    level: str = option(
        "variant",
        "What a class is.",
        check=one_of("variant", "family", "manufacturer"),
    )


@data_sets.register("flowers102")
def load_flowers(root: str, options: Reading) -> DataSet:
    """Return the flowers: 1,020 images for training, 1,020 for validation, 6,149 to test.

    "auto" augmentation rotates by up to 30 degrees, cuts 8 to 100 % of the area, mirrors left and
    right (0.6) and top and bottom (0.4), and mixes.
    """
    given, wanted = _FLOWERS.asked(root, FlowersOptions)
    folder = _FLOWERS.find(given, options)
    labels = _matrix(folder / "imagelabels.mat", "labels")
    sets = {"train": "trnid", "val": "valid", "test": "tstid"}
    parts = {}
    for part, key in sets.items():
        numbers = _matrix(folder / "setid.mat", key)
        if not len(numbers) or not 1 <= numbers.min() <= numbers.max() <= len(labels):
            raise DataError(
                f"'{folder / 'setid.mat'}' does not fit 'imagelabels.mat': unpack both again"
            )
        paths = [folder / "jpg" / f"image_{number:05}.jpg" for number in numbers]
        parts[part] = Files(paths, labels[numbers - 1] - 1)
    classes = [str(number) for number in range(1, int(labels.max()) + 1)]
    side = options.image_size or SIDE
    frame = Frame(side, round(side * 255 / 224), cut=Cut(rotation=30.0))
    auto = Augment(flip=0.6, vertical_flip=0.4, crop=1, mix=wanted.mix)
    return _assembled(f"flowers102:{root}", parts, classes, frame, options, auto)


@data_sets.register("dtd")
def load_textures(root: str, options: Reading) -> DataSet:
    """Return the textures: 1,880 images each for training, validation and test.

    "auto" augmentation cuts 8 to 100 % of the area, mirrors either way, and mixes.
    """
    given, wanted = _DTD.asked(root, TexturesOptions)
    folder = _DTD.find(given, options)
    lists = {part: folder / "labels" / f"{part}{wanted.partition}.txt" for part in PARTS}
    named = {part: [line.strip() for line in lines_of(path)] for part, path in lists.items()}
    classes = sorted({name.partition("/")[0] for name in named["train"]})
    parts = {}
    for part, names in named.items():
        labels = [name.partition("/")[0] for name in names]
        parts[part] = _files(
            [folder / "images" / name for name in names], labels, classes, lists[part]
        )
    side = options.image_size or SIDE
    frame = Frame(side, round(side * 252 / 224), cut=Cut(resized=True))
    auto = Augment(flip=True, vertical_flip=True, crop=1, mix=wanted.mix)
    return _assembled(f"dtd:{root}", parts, classes, frame, options, auto)


@data_sets.register("aircraft")
def load_aircraft(root: str, options: Reading) -> DataSet:
    """Return the aircraft: 3,334 images for training, 3,333 each for validation and test.

    Images are squeezed to 512×512 pixels, of which training takes a random 224×224, mirrored with
    probability 1/2, and all else the centre, as in the paper's code. The centre is a fifth of the
    area: results suffer, but compare.
    """
    given, wanted = _AIRCRAFT.asked(root, AircraftOptions)
    folder = _AIRCRAFT.find(given, options)
    plural = "families" if wanted.level == "family" else f"{wanted.level}s"
    classes = [line.strip() for line in lines_of(folder / f"{plural}.txt")]
    parts = {}
    for part in PARTS:
        path = folder / f"images_{wanted.level}_{part}.txt"
        # Only the first blank separates: a class may be called "Boeing 707-320".
        pairs = [line.strip().partition(" ")[::2] for line in lines_of(path)]
        images = [folder / "images" / f"{name}.jpg" for name, _ in pairs]
        parts[part] = _files(images, [label for _, label in pairs], classes, path)
    side = options.image_size or SIDE
    frame = Frame(side, round(side * 512 / 224), squeeze=True, cut=Cut(area=None))
    auto = Augment(flip=True, crop=1)
    return _assembled(f"aircraft:{root}", parts, classes, frame, options, auto)


def _assembled(
    name: str,
    parts: dict[str, Files],
    classes: Sequence[str],
    frame: Frame,
    options: Reading,
    auto: Augment,
) -> DataSet:
    for part, files in parts.items():
        lost = next((path for path in files.paths if not path.exists()), None)
        if lost is not None:
            raise DataError(f"the {part} image '{lost}' is missing: unpack the archive again")
    check_apart(parts)
    notes: list[str] = []
    chosen = limited(parts, classes, options, notes)
    return from_files(name, chosen, classes, frame, options, notes, auto=auto, recut=True)


def _files(paths: list[Path], labels: list[str], classes: Sequence[str], source: Path) -> Files:
    number = {name: position for position, name in enumerate(classes)}
    for line, label in enumerate(labels, 1):
        if label not in number:
            raise DataError(
                f"line {line} of '{source}' names no known class ('{label}'): unpack the archive "
                "again"
            )
    return Files(paths, np.asarray([number[label] for label in labels], dtype=np.int64))


def _matrix(path: Path, key: str) -> Indices:
    """Return the row of whole numbers that a file of MATLAB holds under a key."""
    from scipy.io import loadmat  # scikit-learn brings it

    try:
        values: Any = loadmat(path)[key]
    except Exception as error:  # a damaged file makes the reader raise anything
        raise DataError(
            f"'{path}' cannot be read ({one_line(str(error))}): download it again"
        ) from error
    return np.asarray(values, dtype=np.int64).reshape(-1)
