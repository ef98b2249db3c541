"""One pass over the data that serves every observer at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from shoal.data.batch import Batch
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.passes.batches import Batches

__all__ = ["Observer", "observe"]


class Observer(Protocol):
    """Collects figures while a network runs in eval mode.

    First `attach` is called, then `begin` before each batch of this process, and `finish` once at
    the end, in every process.
    """

    @abstractmethod
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        """Forget earlier figures, put hooks on the network and return their handles."""

    @abstractmethod
    def begin(self, index: int, batch: Batch) -> None:
        """Get ready for the batch that runs next; `index` is its number among all batches."""

    @abstractmethod
    def finish(self, samples: int, population: int | None) -> None:
        """Sum over the processes, by `shoal.distributed.sum_across`.

        `samples` of `population` samples were used, in all processes; None if that is not known.
        """


def observe(
    network: Network,
    loader: Iterable[Any],
    observers: Sequence[Observer],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Run the network in eval mode over the data, once, with all observers attached.

    Data, samples and progress are as for `Batches`; targets are not used. The network's training
    flags are restored. Returns the number of samples, over all processes.

    Raises:
        DataError: the loader is empty.
    """
    batches = Batches(loader, device_of(network), samples=samples, progress=progress)
    handles: list[RemovableHandle] = []
    try:
        for observer in observers:
            handles += observer.attach(network)
        # Not inference_mode: what a module keeps from such a pass (a table of positions, say)
        # could not take part in training later.
        with eval_mode(network), torch.no_grad():
            for number, batch in batches:
                for observer in observers:
                    observer.begin(number, batch)
                network(*batch.args, **batch.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    for observer in observers:
        observer.finish(batches.seen, batches.population)
    return batches.seen
