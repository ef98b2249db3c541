"""PACS and VLCS: the same classes in four domains, pooled or with one of them left out.

Pooled, the images are split as Quétu et al. 2024 (EASIER) split them: in the authors' order of
domains, 80 % to train on and half of the rest each to validate and test, drawn by NumPy's legacy
generator. With seed 0 and the full data these are the very splits of the paper. Their code augments
validation and test images as well, which is not repeated here.

With `?leave_out=DOMAIN` that domain is the test data, and a fifth of the others is for validation,
with the transforms of DomainBed (Gulrajani and Lopez-Paz 2021).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shoal.data.archives import Archive
from shoal.data.assemble import from_files, limited
from shoal.data.augment import Augment
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.data.frame import Cut, Frame
from shoal.data.layout import Files, folders_in, read_classes, without_images
from shoal.data.split import Indices, stratified_split
from shoal.errors import ConfigError, DataError, unknown_name
from shoal.options import Options, option

SIDE = 224  # pixels
_VAL_FRACTION = 0.2  # of the domains that are not left out, as in DomainBed
# The crop stands for a cut from the file; each frame says which.
_POOLED = Augment(flip=True, crop=1, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4)
_LEFT_OUT = Augment(
    flip=True, crop=1, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.3, grey=0.1
)

_PACS = Archive(
    name="pacs",
    folder="PACS",
    needs=("cartoon", "art_painting", "photo", "sketch"),  # in the order of EASIER's pool
    source="PACS.zip from github.com/facebookresearch/DomainBed (its download script)",
    others={"kfold": "that is what PACS.zip unpacks to; rename it to PACS, and give PACS"},
)
_VLCS = Archive(
    name="vlcs",
    folder="VLCS",
    needs=("VOC2007", "SUN09", "LabelMe", "Caltech101"),
    source="VLCS.tar.gz from github.com/facebookresearch/DomainBed (its download script)",
    others={
        "CALTECH": "that is JigenDG's layout with splits of its own (CALTECH/train, crossval, "
        "test); get DomainBed's VLCS.tar.gz, with VLCS/Caltech101, LabelMe, SUN09 and VOC2007"
    },
)


@dataclass(frozen=True, kw_only=True)
class DomainOptions(Options):
    """What PACS and VLCS can be told."""

    leave_out: str | None = option(
        None, "The domain to test on, of which nothing is seen before.", default_text="pooled"
    )


def _load(archive: Archive, root: str, options: Reading) -> DataSet:
    """Return all domains pooled, or with one of them as the test data."""
    given, wanted = archive.asked(root, DomainOptions)
    folder = archive.find(given, options)
    notes: list[str] = []
    classes, domains = read_domains(folder, archive.needs, notes)
    if wanted.leave_out is None:
        parts, cut, augment = _pooled(list(domains.values()), options), (0.8, 1.0), _POOLED
    elif wanted.leave_out in domains:
        parts = _left_out(domains, wanted.leave_out, classes, options)
        cut, augment = (0.7, 1.0), _LEFT_OUT
    else:
        raise unknown_name(f"domain of {archive.name}", wanted.leave_out, domains)
    chosen = limited(parts, classes, options, notes)
    side = options.image_size or SIDE
    frame = Frame(side, side, squeeze=True, cut=Cut(cut))
    name = f"{archive.name}:{root}"
    return from_files(name, chosen, classes, frame, options, notes, auto=augment, recut=True)


for _archive in (_PACS, _VLCS):
    data_sets.register(_archive.name)(functools.partial(_load, _archive))


def read_domains(
    folder: Path, names: Sequence[str], notes: list[str]
) -> tuple[list[str], dict[str, Files]]:
    """Return the classes, and the images of each domain, in order; adds notes.

    Raises:
        DataError: a domain lacks a class that the first one has, or its images, or has another one.
    """
    classes = [found.name for found in folders_in(folder / names[0])]
    for name in names:
        own = [found.name for found in folders_in(folder / name)]
        for odd in sorted(set(own) ^ set(classes)):
            has, lacks = (name, names[0]) if odd in own else (names[0], name)
            raise DataError(
                f"class '{odd}' is in {has} and not in {lacks} ('{folder}'): all domains need the "
                "same class folders"
            )
    domains = {name: read_classes(folder / name, classes, name, notes) for name in names}
    for name, files in domains.items():
        empty = without_images(files, classes)
        if empty:
            raise DataError(
                f"class '{empty[0]}' has no image in {name} ('{folder / name}'): unpack "
                "the archive again"
            )
    return classes, domains


def joined(files: Sequence[Files]) -> Files:
    """Return several lists of files as one."""
    paths = [path for one in files for path in one.paths]
    return Files(paths, np.concatenate([one.labels for one in files]))


def pooled_split(count: int, seed: int) -> dict[str, Indices]:
    """Return which of `count` samples train, validate and test: 80 % and half of the rest each.

    Drawn as by `numpy.random.seed(seed)` and `shuffle`, the way of EASIER's code.
    """
    order = np.arange(count)
    np.random.RandomState(seed % 2**32).shuffle(order)
    first = int(0.8 * count)
    second = first + (count - first) // 2
    return {"train": order[:first], "val": order[first:second], "test": order[second:]}


def _pooled(domains: Sequence[Files], options: Reading) -> dict[str, Files]:
    if options.val_fraction is not None:
        raise ConfigError(
            "val_fraction does not apply to pooled domains, which are split 80, 10 and 10 %: omit "
            "it, or test on one domain by ?leave_out=DOMAIN"
        )
    pool = joined(domains)
    split = pooled_split(len(pool.paths), options.seed)
    for part, positions in split.items():
        if not len(positions):
            raise DataError(
                f"{len(pool.paths)} images in all leave none for {part}: give at least 10"
            )
    return {part: pool.at(positions) for part, positions in split.items()}


def _left_out(
    domains: dict[str, Files], name: str, classes: Sequence[str], options: Reading
) -> dict[str, Files]:
    """Return the parts with one domain as the test data; the others are split alike, each."""
    others = {domain: files for domain, files in domains.items() if domain != name}
    pool = joined(list(others.values()))
    groups = np.concatenate(
        [files.labels + len(classes) * number for number, files in enumerate(others.values())]
    )
    val, train = stratified_split(
        groups,
        options.val_fraction or _VAL_FRACTION,
        seed=options.seed,
        purpose="validation",
        classes=[f"{domain}/{c}" for domain in others for c in classes],
    )
    return {"train": pool.at(train), "val": pool.at(val), "test": domains[name]}
