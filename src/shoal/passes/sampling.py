"""Which batches a pass over the data sees: all of a loader's, or those of so many samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from shoal.data.base import SeededLoader
from shoal.data.batch import split_batch
from shoal.errors import ConfigError

__all__ = ["SampledBatches", "first_samples"]


class SampledBatches:
    """The batches of a pass, with their numbers from 0.

    shoal's loaders give their images in stored order, without augmentation.

    Args:
        loader: batches as `split_batch` takes them.
        samples: use this many samples only: a stratified choice where the loader can choose
            (`take`), else the first ones. None takes all.

    Raises:
        ConfigError: `samples` is below 1.

    Attributes:
        batches: how many batches a whole pass has at most; 0 where the loader does not tell.
    """

    def __init__(self, loader: Iterable[Any], samples: int | None) -> None:
        if samples is not None and samples < 1:
            raise ConfigError(f"samples is {samples}: give at least 1, or leave it out for all")
        plain = getattr(loader, "plain", None)
        self._loader: Any = plain() if callable(plain) else loader
        self._left = samples
        self._everything = True
        self._known: int | None = None
        if samples is not None and isinstance(self._loader, SeededLoader):
            self._known = self._loader.num_samples
            self._loader = self._loader.take(samples)
            self._left = None
        self.batches = len(self._loader) if hasattr(self._loader, "__len__") else 0

    @property
    def expected(self) -> int | None:
        """How many samples a whole pass will have; None if that is not known."""
        return min((n for n in (self._left, self._whole()) if n is not None), default=None)

    def _whole(self) -> int | None:
        """Return how many samples the loader has, or at most has; None if it does not tell."""
        if isinstance(self._loader, SeededLoader):
            return self._loader.num_samples
        if isinstance(self._loader, list | tuple):
            return sum(split_batch(batch).size for batch in self._loader)
        size = getattr(self._loader, "batch_size", None)
        return self.batches * size if isinstance(size, int) and self.batches else None

    def population(self, seen: int) -> int | None:
        """Return how many samples there are, once a pass has `seen` so many; None if unknown."""
        return self._known or (seen if self._everything else None)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield each batch's number and the batch."""
        left = self._left
        for index, batch in enumerate(self._loader):
            if left is None:
                yield index, batch
                continue
            if left == 0:
                self._everything = False
                return
            size = split_batch(batch).size
            if size > left:
                self._everything = False
            yield index, first_samples(batch, left) if size > left else batch
            left -= min(size, left)


def first_samples(batch: Any, count: int) -> tuple[Any, Any]:
    """Return the first `count` samples of a loader's batch, as (inputs, target)."""
    whole = split_batch(batch)
    inputs: Any = {name: value[:count] for name, value in whole.kwargs.items()}
    if whole.args:
        inputs = tuple(value[:count] for value in whole.args)
    return inputs, None if whole.target is None else whole.target[:count]
