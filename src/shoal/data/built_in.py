"""scikit-learn's digits, which need no download, and CIFAR as torchvision reads it."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.compat import import_torchvision
from shoal.data.assemble import VAL_FRACTION, from_arrays
from shoal.data.augment import Augment
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.data.frame import Pixels
from shoal.data.split import random_split
from shoal.errors import ConfigError, DataError, one_line
from shoal.options import Options, assert_takes, one_of, option
from shoal.targets import parse_target
from shoal.user_paths import user_path


@data_sets.register("digits")
def _digits(root: str, options: Reading) -> DataSet:
    """Return the 1,797 digits, 8×8 pixels, one channel.

    They are split, stratified, into 70 % for training, 15 % for validation and 15 % for testing.
    "auto" augmentation is none: the digits are centred and fill their 8 pixels, and a network
    trained on shifted ones scored no better ("shift" moves by up to one pixel).
    """
    if root:
        raise ConfigError(
            f"the data set 'digits' has no folder: write 'digits', not 'digits:{root}'"
        )
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 0..16 counts the dark cells of a 4×4 square.
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [N, 8, 8, 1]
    labels, names = digits.target.astype(np.int64), [*map(str, digits.target_names)]
    # Mean and std map the pixels to [-1, 1], whatever the split.
    own: dict[str, Any] = {"auto": Augment(), "mean": (0.5,), "std": (0.5,)}
    return from_arrays("digits", grey, labels, names, options, **own)


@dataclass(frozen=True, kw_only=True)
class CifarOptions(Options):
    """What CIFAR can be told."""

    split: str = option(
        "stratified",
        "How validation images are chosen: the same share of each class, or at random.",
        check=one_of("stratified", "random"),
    )


def _cifar(name: str, reader_name: str, root: str, options: Reading) -> DataSet:
    """Return the training images less the validation part, and the official test images.

    CIFAR-10, and CIFAR-100 with its fine classes (Krizhevsky 2009). "auto" augmentation mirrors
    and shifts by up to an eighth: 4 of 32 pixels. `?split=random` validates on the tenth that
    Quétu et al. 2024 (EASIER) drew with seed 0, in place of the same share of each class.
    """
    text, values = parse_target(root)
    if not text:
        raise ConfigError(f"the data set '{name}' needs its folder: write '{name}:FOLDER'")
    assert_takes(f"the data set '{name}'", CifarOptions, values)
    wanted = CifarOptions.from_dict(values)
    reader = getattr(import_torchvision().datasets, reader_name)
    folder = user_path(text)
    if folder.name == reader.base_folder:
        folder = folder.parent
    images, labels, classes = _read(reader, folder, name, options, train=True)
    test, test_labels, _ = _read(reader, folder, name, options, train=False)
    val = None
    if wanted.split == "random":
        share = options.val_fraction or VAL_FRACTION
        val, _ = random_split(len(labels), round(share * len(labels)), options.seed)
    return from_arrays(name, images, labels, classes, options, test=(test, test_labels), val=val)


def _read(
    reader: Any, folder: Path, name: str, options: Reading, *, train: bool
) -> tuple[Pixels, NDArray[np.int64], list[str]]:
    """Return pixels `[N, 32, 32, 3]`, labels and class names of the training or the test files."""
    try:
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of a habit of the old NumPy that pickled the files.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            data = reader(folder, train=train, download=options.download)
    except (RuntimeError, OSError) as error:  # torchvision's own checks, or the download
        if options.download:
            raise DataError(
                f"{name} cannot be downloaded to '{folder}' ({one_line(str(error))}): "
                f"check the network, or put {reader.base_folder} there by hand"
            ) from error
        raise DataError(
            f"there is no complete '{reader.base_folder}' in '{folder}': "
            f"give the right folder, or get {reader.url} and unpack it there, or add download=True"
        ) from error
    return data.data, np.asarray(data.targets, dtype=np.int64), list(data.classes)


for _name, _reader in (("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")):
    data_sets.register(_name)(functools.partial(_cifar, _name, _reader))
