"""What a data set is to the rest of shoal, and the options that make one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from shoal.data.augment import Augment
from shoal.data.batch import split_batch
from shoal.data.loader import ImageLoader
from shoal.errors import DataError
from shoal.options import DataOptions
from shoal.registry import Registry

__all__ = ["DataSet", "Loader", "Reading", "data_sets", "register_data"]


class Loader(Protocol):
    """Data to train and evaluate on: batches as `split_batch` takes them, and their number.

    `ImageLoader` and PyTorch's `DataLoader` are such loaders.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of a pass over the data."""
        ...

    def __len__(self) -> int:
        """Return the number of batches."""
        ...


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
        return tuple((inputs if isinstance(inputs, Tensor) else inputs[0]).shape[1:])

    def example_inputs(self, batch: int = 2) -> Tensor | tuple[Tensor, ...]:
        """Return the inputs of the first training samples, normalised, not augmented if possible.

        Args:
            batch: how many samples; at least 2 to capture a model for any batch size.

        Returns:
            `[batch, ...]`; a tuple if the model takes several inputs.

        Raises:
            DataError: there are fewer training samples, or inputs go by keywords.
        """
        loader: Any = self.train
        if isinstance(loader, ImageLoader):
            loader = loader.plain().with_batch_size(batch)
        parts: list[tuple[Tensor, ...]] = []
        size = 0
        for item in loader:
            given = split_batch(item)
            if given.kwargs:
                raise DataError(
                    f"the data set '{self.name}' gives its inputs by keywords "
                    f"({', '.join(given.kwargs)}): give example inputs as a tensor or a tuple"
                )
            parts.append(given.args)
            size += given.size
            if size >= batch:
                break
        if size < batch:
            raise DataError(
                f"the data set '{self.name}' has {size} training samples: "
                f"at least {batch} are needed"
            )
        inputs = tuple(torch.cat(tensors)[:batch] for tensors in zip(*parts, strict=True))
        return inputs if len(inputs) > 1 else inputs[0]

    def describe(self) -> str:
        """Return one line: sizes, shape and classes."""
        sizes = ", ".join(f"{size:,} {part}" for part, size in self._sizes().items())
        unit = "images" if isinstance(self.train, ImageLoader) else "batches"
        shape = "×".join(str(side) for side in self.sample_shape)
        classes = f" in {self.num_classes} classes" if self.num_classes else ""
        return f"{self.name}: {sizes} {unit} of {shape}{classes}"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts about the data set as plain values; sizes in images or batches."""
        return {
            "name": self.name,
            "sizes": self._sizes(),
            "sample_shape": list(self.sample_shape),
            "num_classes": self.num_classes,
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "notes": list(self.notes),
        }

    def _sizes(self) -> dict[str, int]:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {
            name: part.num_samples if isinstance(part, ImageLoader) else len(part)
            for name, part in parts.items()
            if part is not None
        }


@dataclass(frozen=True, kw_only=True)
class Reading(DataOptions):
    """How a data source is read: the options, and what only Python can give.

    Attributes:
        device: where batches go.
        transform: an augmentation to use instead of the one that `augment` names.
    """

    device: torch.device | str = "cpu"
    transform: Augment | None = None


Source = Callable[[str, Reading], DataSet]
"""Makes a data set from the text after the colon ("" if there is none) and the options."""

data_sets: Registry[Source] = Registry("data set", "shoal.data")


def register_data(name: str) -> Callable[[Source], Source]:
    """Return a decorator that makes a `Source` of data known by a name: `--data name:ROOT`.

    Raises:
        ConfigError: the name is taken.

    Example:
        >>> import shoal, torch
        >>> @shoal.register_data("noise")
        ... def noise(root, reading):
        ...     batches = [(torch.randn(8, 1, 8, 8), torch.arange(8))]
        ...     return shoal.data.DataSet("noise", train=batches, val=batches)
        >>> shoal.data.load_data("noise").describe()
        'noise: 1 train, 1 val batches of 1×8×8'
    """
    return data_sets.register(name)
