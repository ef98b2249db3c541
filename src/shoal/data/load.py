"""From what the user writes (`cifar10:ROOT`, `file.py:factory`) to a data set."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shoal.compat import with_torchvision
from shoal.data.augment import Augment
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.errors import ConfigError, DataError, NameNotFoundError, unknown_name
from shoal.targets import call_target, import_target, parse_target

__all__ = ["load_data"]


def load_data(spec: str, *, device: torch.device | str = "cpu", **options: Any) -> DataSet:
    """Return the data set that `spec` names, split into training, validation and test.

    Args:
        spec: "digits", "cifar10:ROOT", "cifar100:ROOT", "folder:ROOT", or a factory,
            "package.module:factory" or "path/file.py:factory", with `?key=value&…` for its
            arguments. A factory returns a `DataSet`, or (train, val) or (train, val, test), each
            an iterable of batches with a length; the options do not apply to it.
        device: where batches go.
        **options: fields of `DataOptions`; `augment` may also be an `Augment`, or None for none.

    Raises:
        NameNotFoundError: there is no such kind of data set, or no such option.
        ConfigError: the spec is malformed, an option is out of its range, or the factory failed.
        DataError: the data are missing, empty or damaged.

    Example:
        >>> import shoal
        >>> data = shoal.data.load_data("digits", train_samples=500)
        >>> data.describe()
        'digits: 500 train, 270 val, 270 test images of 1×8×8 in 10 classes'
    """
    augment = options.get("augment")
    if isinstance(augment, Augment):
        options |= {"augment": "none", "transform": augment}
    elif "augment" in options and augment is None:
        options["augment"] = "none"
    reading = Reading.from_dict({"device": device, **options})
    kind, colon, root = spec.strip().partition(":")
    if kind in data_sets:
        return data_sets[kind](root, reading)
    if not colon or not _is_factory(spec.strip().partition("?")[0]):
        raise _unknown_kind(spec.strip(), kind)
    return _from_factory(spec.strip(), reading)


def _is_factory(target: str) -> bool:
    """Whether `target` is a file or module and a name in it, not a misspelt kind and folder."""
    source, _, name = target.rpartition(":")
    if source.endswith(".py") or "/" in source or "." in source:
        return True
    misspelt = difflib.get_close_matches(source, data_sets.names(), n=1)
    return not misspelt and all(part.isidentifier() for part in (source, *name.split(".")))


def _unknown_kind(spec: str, kind: str) -> NameNotFoundError:
    if Path(spec).expanduser().is_dir():
        return NameNotFoundError(f"unknown data set '{spec}': write 'folder:{spec}' for a folder")
    return unknown_name("data set", kind, data_sets.names())


def _from_factory(spec: str, options: Reading) -> DataSet:
    target, keywords = parse_target(spec)
    _check_unused(target, options)
    factory = import_target(target, with_torchvision)
    made = call_target(factory, keywords, target, with_torchvision)
    if isinstance(made, DataSet):
        return made
    if not isinstance(made, tuple | list) or len(made) not in (2, 3):
        what = f"{len(made)} things" if isinstance(made, tuple | list) else type(made).__name__
        raise DataError(
            f"{target} returned {what}: return a shoal.data.DataSet, (train, val) "
            "or (train, val, test)"
        )
    for part, loader in zip(("train", "val", "test"), made, strict=False):
        if part != "test" or loader is not None:
            _check_loader(loader, f"the {part} data of {target}")
    train, val, test = (*made, None)[:3]
    classes = _class_names(train)
    return DataSet(name=spec, train=train, val=val, test=test, classes=classes)


_OF_BUILT_IN = (
    "train_samples",
    "val_fraction",
    "val_samples",
    "image_size",
    "mean",
    "std",
    "augment",
)


def _check_unused(target: str, options: Reading) -> None:
    """Refuse options that a factory would silently ignore."""
    default = Reading()
    for name in _OF_BUILT_IN:
        if getattr(options, name) != getattr(default, name):
            raise ConfigError(
                f"{name} does not apply to the data factory {target}: "
                "let the factory do it, or give it arguments as '?key=value'"
            )


def _check_loader(loader: Any, what: str) -> None:
    kind = type(loader).__name__
    if isinstance(loader, Iterator):
        raise DataError(f"{what} is a {kind}, which can be read only once: return a list or loader")
    if not hasattr(loader, "__iter__") or not hasattr(loader, "__len__"):
        raise DataError(
            f"{what} is a {kind}: return an iterable of batches with a length, as a DataLoader"
        )


def _class_names(train: Any) -> tuple[str, ...]:
    """Return the names of the classes if the loader's data set has them, as torchvision's do."""
    names = getattr(getattr(train, "dataset", None), "classes", None)
    return tuple(str(name) for name in names) if isinstance(names, tuple | list) else ()
