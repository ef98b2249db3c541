"""What a data set is, and how one is found by what the user writes: `cifar10:ROOT`, `f.py:name`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.compat import with_torchvision
from shoal.data.augment import Augment
from shoal.data.batch import Batch, batch_count, split_batch
from shoal.data.facts import facts_of
from shoal.data.loader import ImageLoader
from shoal.errors import ConfigError, DataError, NameNotFoundError, unknown_name
from shoal.options import DataOptions
from shoal.registry import Registry
from shoal.targets import call_target, import_target, parse_target
from shoal.user_paths import user_path


class Loader(Protocol):
    """Data to train and evaluate on: batches as `split_batch` takes them, and their number.

    `ImageLoader` and PyTorch's `DataLoader` are such loaders.
    """

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class DataSet:
    """Training, validation and test data of one task.

    Attributes:
        name: the user's name for it ("cifar10").
        train: to train on, augmented and shuffled.
        val: to decide on; never augmented, disjoint from the other two.
        test: only reported; None if there is none.
        classes: names of the classes in the order of their labels; empty if not known.
        mean: per channel, what was subtracted from pixels in [0, 1]; empty if not known.
        std: per channel, what they were divided by; empty if not known.
        notes: what the user should know, one line each (files skipped, …).
    """

    name: str
    train: Loader
    val: Loader
    test: Loader | None = None
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None if a user's own loaders do not have it."""
        return len(self.classes) or getattr(self.train, "num_classes", None)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample's first input, `(C, H, W)` of images."""
        shape = getattr(self.train, "sample_shape", None)
        if shape is not None:
            return tuple(shape)
        inputs = self.example_inputs()
        if isinstance(inputs, dict):
            inputs = tuple(inputs.values())
        return tuple((inputs if isinstance(inputs, Tensor) else inputs[0]).shape[1:])

    def example_inputs(self, batch: int = 2) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
        """Return the inputs of the first training samples, normalised, not augmented if possible.

        They are `[batch, ...]`, at least 2 to capture a model for any batch size; a tuple if the
        model takes several inputs, a dict if they go by keywords.

        Raises:
            DataError: there are fewer training samples, or they differ in shape or form.
        """
        loader: Any = self.train
        if isinstance(loader, ImageLoader):
            loader = loader.plain().with_batch_size(batch)
        parts: list[Batch] = []
        size = 0
        for given in map(split_batch, loader):
            parts.append(given)
            size += given.size
            if size >= batch:
                break
        if size < batch:
            raise DataError(
                f"the data set '{self.name}' has {size} training samples: "
                f"at least {batch} are needed"
            )
        inputs = [part.inputs for part in parts]
        try:
            joined = [torch.cat(same)[:batch] for same in zip(*inputs, strict=True)]
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"the first batches of the data set '{self.name}' have samples of other shapes "
                f"than each other: give it a batch_size of at least {batch}"
            ) from error
        if parts[0].kwargs:
            return dict(zip(parts[0].kwargs, joined, strict=True))  # none is by place then
        return tuple(joined) if len(joined) > 1 else joined[0]

    @property
    def short_name(self) -> str:
        """The name without the folders above the last one, which are of one machine alone."""
        spec, mark, own = self.name.partition("?")
        kind, colon, root = spec.partition(":")
        # What a user's factory takes may be a folder.
        more = f"{mark}{own}" if kind in data_sets else ""
        return f"{kind.rpartition('/')[2]}{colon}{Path(root).name}{more}"

    def describe(self) -> str:
        """Return one line: sizes, shape, classes and normalisation."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        counts = {
            name: getattr(part, "num_samples", batch_count(part))
            for name, part in parts.items()
            if part is not None
        }
        sizes = ", ".join(
            f"{'an unknown number of' if count is None else format(count, ',')} {name}"
            for name, count in counts.items()
        )
        shape = "×".join(str(side) for side in self.sample_shape)
        classes = f" in {self.num_classes} classes" if self.num_classes else ""
        scaled = f", {normalisation(self.mean, self.std)}" if self.mean and self.std else ""
        if isinstance(self.train, ImageLoader):
            return f"{self.name}: {sizes} images of {shape}{classes}{scaled}"
        return f"{self.name}: batches: {sizes}; samples of {shape}{classes}{scaled}"

    def facts(self) -> dict[str, Any]:
        """Return what goes with a network for these data: `classes`, `mean` and `std`, if known."""
        own = {name: getattr(self, name) for name in ("classes", "mean", "std")}
        known = {**facts_of(self.train), **{name: value for name, value in own.items() if value}}
        return {name: list(value) for name, value in known.items()}


def normalisation(mean: Sequence[float], std: Sequence[float]) -> str:
    """Return in words what was done to pixels from 0 to 1."""
    each = (", ".join(format(value, "g") for value in values) for values in (mean, std))
    return "mean {}, deviation {}".format(*each)


@dataclass(frozen=True, kw_only=True)
class Reading(DataOptions):
    """How a data source is read: the options, and what only Python can give."""

    device: torch.device | str = "cpu"  # where batches go
    transform: Augment | None = None  # instead of what `augment` names


Source = Callable[[str, Reading], DataSet]
"""Makes a data set from the text after the colon ("" if there is none) and the options."""

data_sets: Registry[Source] = Registry("data set", "shoal.data")


def register_data(name: str) -> Callable[[Source], Source]:
    """Return a decorator that makes a `Source` of data known by a name: `--data name:ROOT`.

    Example:
        >>> import shoal, torch
        >>> @shoal.register_data("noise")
        ... def noise(root, reading):
        ...     batches = [(torch.randn(8, 1, 8, 8), torch.arange(8))]
        ...     return shoal.data.DataSet("noise", train=batches, val=batches)
        >>> shoal.data.load_data("noise").describe()
        'noise: batches: 1 train, 1 val; samples of 1×8×8'
    """
    return data_sets.register(name)


def load_data(spec: str, *, device: torch.device | str = "cpu", **options: Any) -> DataSet:
    """Return the data set that `spec` names, split into training, validation and test.

    Args:
        spec: "digits", "cifar10:ROOT", "cifar100:ROOT", "folder:ROOT", "tiny_imagenet:ROOT",
            "pacs:ROOT", "vlcs:ROOT", "flowers102:ROOT", "dtd:ROOT", "aircraft:ROOT", or a factory,
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
        >>> print(data.describe())
        digits: 500 train, 270 val, 270 test images of 1×8×8 in 10 classes, mean 0.5, deviation 0.5
    """
    augment = options.get("augment")
    if isinstance(augment, Augment):
        options |= {"augment": "none", "transform": augment}
    elif "augment" in options and augment is None:
        options["augment"] = "none"
    reading = Reading.from_dict({"device": device, **options})
    spec = spec.strip()
    check_name(spec)
    kind, _, root = spec.partition(":")
    return data_sets[kind](root, reading) if kind in data_sets else _from_factory(spec, reading)


def check_name(spec: str) -> None:
    """Raise `NameNotFoundError` if `spec` names no kind of data set and no factory."""
    spec = spec.strip()
    kind, colon, root = spec.partition(":")
    if kind in data_sets or (colon and _is_factory(spec.partition("?")[0])):
        return
    if user_path(spec).is_dir():
        raise NameNotFoundError(f"unknown data set '{spec}': write 'folder:{spec}' for a folder")
    unknown = unknown_name("data set", kind, data_sets.names())
    if root and user_path(root).is_dir():  # such as a copy of ImageNet
        unknown = NameNotFoundError(f"{unknown}; folders of classes are read by 'folder:{root}'")
    raise unknown


def _is_factory(target: str) -> bool:
    """Whether `target` is a file or module and a name in it, not a misspelt kind and folder."""
    source, _, name = target.rpartition(":")
    if source.endswith(".py") or "/" in source or "." in source:
        return True
    misspelt = difflib.get_close_matches(source, data_sets.names(), n=1)
    return not misspelt and all(part.isidentifier() for part in (source, *name.split(".")))


def _from_factory(spec: str, options: Reading) -> DataSet:
    target, keywords = parse_target(spec)
    default = Reading()
    for name in _IGNORED:
        if getattr(options, name) != getattr(default, name):
            raise ConfigError(
                f"{name} does not apply to the data factory {target}: "
                "let the factory do it, or give it arguments as '?key=value'"
            )
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
    return DataSet(spec, train, val, test, **facts_of(train))


# Options that a factory would silently ignore.
_IGNORED = ("train_samples", "val_fraction", "val_samples", "image_size", "mean", "std", "augment")


def _check_loader(loader: Any, what: str) -> None:
    kind = type(loader).__name__
    if isinstance(loader, Iterator):
        raise DataError(f"{what} is a {kind}, which can be read only once: return a list or loader")
    if not hasattr(loader, "__iter__") or batch_count(loader) is None:
        raise DataError(
            f"{what} is a {kind}: return an iterable of batches with a length, as a DataLoader"
        )
