"""From what the user writes (`cifar10:ROOT`, `file.py:factory`) to a data set."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from shoal.compat import with_torchvision
from shoal.data.augment import Augment
from shoal.data.dataset import DataOptions, DataSet, data_sets
from shoal.errors import ConfigError, DataError, NameNotFoundError, unknown_name
from shoal.targets import call_target, import_target, parse_target

__all__ = ["load_data"]


def load_data(
    spec: str,
    *,
    batch_size: int = 128,
    eval_batch_size: int | None = None,
    train_samples: int | None = None,
    val_fraction: float | None = None,
    val_samples: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augment: str | Augment | None = "auto",
    skip_broken: bool = False,
    download: bool = False,
    max_memory_gib: float = 4.0,
    workers: int = 2,
    device: torch.device | str = "cpu",
) -> DataSet:
    """Return the data set that `spec` names, split into training, validation and test.

    Splits, subsets, order and augmentation depend on `seed` alone: the same seed gives the same
    numbers in every run, process and version of Python.

    Args:
        spec: "digits", "cifar10:ROOT", "cifar100:ROOT", "folder:ROOT", or a factory,
            "package.module:factory" or "path/file.py:factory", with `?key=value&…` for its
            arguments. A factory returns a `DataSet`, or (train, val) or (train, val, test), each
            an iterable of batches with a length; the options below do not reach into it.
        batch_size: images per batch of all processes together.
        eval_batch_size: the same for validation and test; None means `batch_size`.
        train_samples: train on so many images only: a stratified, seeded subset.
        val_fraction: what part of the training images is for validation where the source has no
            validation part. None means 0.1, and 0.15 where a test part is split off too (digits,
            class folders without `train`); it is then a part of all images.
        val_samples: validate on so many images only, stratified.
        seed: at least 0.
        image_size: height and width in pixels; None leaves it to the source.
        mean: per channel, in units of the full range of a pixel; None leaves it to the source.
        std: as `mean`.
        augment: an `Augment`, None, or "none", "flip_crop", "shift", "auto" (the source's own).
        skip_broken: leave out files that cannot be decoded; `notes` names them.
        download: fetch what is missing, where the source can.
        max_memory_gib: images that take more are decoded as they are needed.
        workers: processes that then decode.
        device: where batches shall be.

    Raises:
        NameNotFoundError: there is no such kind of data set.
        ConfigError: the spec or an option makes no sense, or the factory failed.
        DataError: the data are missing, empty or damaged.
    """
    options = DataOptions(
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        train_samples=train_samples,
        val_fraction=val_fraction,
        val_samples=val_samples,
        seed=seed,
        image_size=image_size,
        mean=mean,
        std=std,
        augment=augment,
        skip_broken=skip_broken,
        download=download,
        max_memory_gib=max_memory_gib,
        workers=workers,
        device=device,
    )
    kind, colon, root = spec.strip().partition(":")
    if kind in data_sets:
        return data_sets[kind](root, options)
    if not colon or not _is_factory(spec.strip().partition("?")[0]):
        raise _unknown_kind(spec.strip(), kind)
    return _from_factory(spec.strip(), options)


def _is_factory(target: str) -> bool:
    """Say whether `target` is a file or module and a name in it, not a misspelt kind and folder."""
    source, _, name = target.rpartition(":")
    if source.endswith(".py") or "/" in source or "." in source:
        return True
    misspelt = difflib.get_close_matches(source, data_sets.names(), n=1)
    return not misspelt and all(part.isidentifier() for part in (source, *name.split(".")))


def _unknown_kind(spec: str, kind: str) -> NameNotFoundError:
    """Return the error for a spec that names nothing."""
    if Path(spec).expanduser().is_dir():
        return NameNotFoundError(f"unknown data set '{spec}': write 'folder:{spec}' for a folder")
    return unknown_name("data set", kind, data_sets.names())


def _from_factory(spec: str, options: DataOptions) -> DataSet:
    """Call the user's factory and check what it returns."""
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


def _check_unused(target: str, options: DataOptions) -> None:
    """Raise `ConfigError` for options that a factory would silently ignore."""
    default = DataOptions()
    for name in (
        "train_samples",
        "val_fraction",
        "val_samples",
        "image_size",
        "mean",
        "std",
        "augment",
    ):
        if getattr(options, name) != getattr(default, name):
            raise ConfigError(
                f"{name} does not apply to the data factory {target}: "
                "let the factory do it, or give it arguments as '?key=value'"
            )


def _check_loader(loader: Any, what: str) -> None:
    """Raise `DataError` unless `loader` can be read again and again."""
    kind = type(loader).__name__
    if isinstance(loader, Iterator):
        raise DataError(f"{what} is a {kind}, which can be read only once: return a list or loader")
    if not hasattr(loader, "__iter__") or not hasattr(loader, "__len__"):
        raise DataError(
            f"{what} is a {kind}: return an iterable of batches with a length, as a DataLoader"
        )


def _class_names(train: Any) -> tuple[str, ...]:
    """Return the names of the classes if the data under the loader carry them, as torchvision's."""
    names = getattr(getattr(train, "dataset", None), "classes", None)
    return tuple(str(name) for name in names) if isinstance(names, tuple | list) else ()
