"""The batches of a criterion that runs the network itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from shoal.data.batch import Batch, split_batch
from shoal.distributed import my_batches, sum_across
from shoal.errors import DataError
from shoal.modes import device_of
from shoal.network import Network
from shoal.passes.sampling import SampledBatches

__all__ = ["Pass"]


class Pass:
    """This process's share of the batches, on the network's device; may be gone over repeatedly.

    Args:
        network: tells the device.
        loader: batches as `split_batch` takes them.
        samples: use this many samples only, as `observe` does.
        progress: called after each batch with the batches done and their total.
        rounds: how often the data will be gone over in all, for `progress`.
    """

    def __init__(
        self,
        network: Network,
        loader: Iterable[Any],
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        rounds: int = 1,
    ) -> None:
        self._chosen = SampledBatches(loader, samples)
        self._device = device_of(network)
        self._progress = progress
        self._rounds = rounds
        self._done = 0
        self._seen = 0

    def __iter__(self) -> Iterator[Batch]:
        self._seen = 0
        total = self._chosen.batches * self._rounds
        last = 0
        for index, raw in my_batches(self._chosen):
            batch = split_batch(raw, self._device)
            last = index + 1
            if batch.size == 0:
                continue
            self._seen += batch.size
            yield batch
            if self._progress is not None:
                self._progress(self._done + last, total)
        self._done += self._chosen.batches or last

    def samples(self) -> int:
        """Return how many samples the last round had, over all processes.

        Raises:
            DataError: none.
        """
        total = int(sum_across(torch.tensor(self._seen)))
        if total == 0:
            raise DataError("the loader is empty: there is nothing to score")
        return total
