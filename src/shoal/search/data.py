"""The data of a search."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from shoal.data.batch import Batch, split_batch
from shoal.errors import DataError

__all__ = ["Data"]


@dataclass(frozen=True)
class Data:
    """The data of a search.

    Attributes:
        train: training batches; scoring reads them without shuffling and augmentation where the
            loader can (`plain`).
        val: validation batches: all choices follow from them.
        test: test batches, reported only.
    """

    train: Iterable[Any]
    val: Iterable[Any]
    test: Iterable[Any] | None = None

    def example(self, batch: int, device: torch.device) -> Any:
        """Return `batch` samples of the validation data, repeated if there are fewer.

        Raises:
            DataError: the validation data are empty.
        """
        whole = self._first

        def take(value: Tensor) -> Tensor:
            times = -(-batch // len(value))
            return value.repeat(times, *[1] * (value.dim() - 1))[:batch].to(device)

        if whole.kwargs:
            return {name: take(value) for name, value in whole.kwargs.items()}
        return tuple(map(take, whole.args))

    @cached_property
    def _first(self) -> Batch:
        first = next(iter(self.val), None)
        if first is None:
            raise DataError("the validation data are empty: give at least one batch")
        return split_batch(first)
