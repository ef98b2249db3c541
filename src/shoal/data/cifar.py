"""CIFAR-10, and CIFAR-100 with its fine classes (Krizhevsky 2009), as torchvision reads them."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.data.assemble import from_arrays
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.data.images import Pixels
from shoal.errors import ConfigError, DataError


def _load(name: str, reader_name: str, root: str, options: Reading) -> DataSet:
    """Return the training images less the validation part, and the official test images.

    "auto" augmentation mirrors and shifts by up to an eighth: 4 of 32 pixels.

    Args:
        name: of the data set.
        reader_name: of torchvision's class.
        root: the folder that holds `cifar-10-batches-py` or `cifar-100-python`.
        options: how to read it.

    Raises:
        ConfigError: no root was given.
        DataError: the files are not there, and `download` is off or fails.
    """
    if not root:
        raise ConfigError(f"the data set '{name}' needs its folder: write '{name}:FOLDER'")
    from shoal.compat import import_torchvision

    import_torchvision()
    from torchvision import datasets

    reader = getattr(datasets, reader_name)
    folder = Path(root).expanduser()
    if folder.name == reader.base_folder:
        folder = folder.parent
    images, labels, classes = _read(reader, folder, name, options, train=True)
    test, test_labels, _ = _read(reader, folder, name, options, train=False)
    return from_arrays(name, images, labels, classes, options, test=(test, test_labels))


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
            reason = " ".join(str(error).split())
            raise DataError(
                f"{name} cannot be downloaded to '{folder}' ({reason}): "
                f"check the network, or put {reader.base_folder} there by hand"
            ) from error
        raise DataError(
            f"there is no complete '{reader.base_folder}' in '{folder}': "
            "give the right folder, or fetch it with download=True"
        ) from error
    return data.data, np.asarray(data.targets, dtype=np.int64), list(data.classes)


for _name, _reader in (("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")):
    data_sets.register(_name)(functools.partial(_load, _name, _reader))
