"""One pass over the data that serves every observer at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from shoal.data.batch import Batch, split_batch
from shoal.distributed import my_batches, sum_across
from shoal.errors import DataError
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.passes.sampling import SampledBatches

__all__ = ["Observer", "observe"]


class Observer(Protocol):
    """Collects figures while a network runs in eval mode.

    `attach` puts hooks on the network. Then, for each batch of this process, `begin` tells the
    batch and its index among all batches, and the network runs. `finish` is called once at the
    end, in every process: there an observer sums over processes.
    """

    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        """Put hooks on the network and return their handles."""
        ...

    def begin(self, index: int, batch: Batch) -> None:
        """Hear of the batch that runs next."""
        ...

    def finish(self, samples: int, population: int | None) -> None:
        """Hear that `samples` samples went through, of how many; None where that is not known."""
        ...


def observe(
    network: Network,
    loader: Iterable[Any],
    observers: Sequence[Observer],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Run the network in eval mode over the data, once, with all observers attached.

    shoal's loaders give their images in stored order, without augmentation; another loader is
    iterated as it is, so it should not shuffle or augment. Under several processes each takes its
    share of the batches.

    Args:
        network: the network; its training flags are restored.
        loader: batches as `split_batch` takes them. Targets are not used.
        observers: what collects.
        samples: use this many samples only: a stratified choice where the loader can choose
            (`take`), else the first ones.
        progress: called after each batch with the batches done and their total.

    Returns:
        The number of samples, over all processes.

    Raises:
        DataError: the loader is empty.
    """
    chosen = SampledBatches(loader, samples)
    device = device_of(network)
    seen = torch.zeros((), dtype=torch.int64)
    handles: list[RemovableHandle] = []
    try:
        for observer in observers:
            handles += observer.attach(network)
        # Not inference_mode: what a module keeps from such a pass (a table of positions, say)
        # could not take part in training later.
        with eval_mode(network), torch.no_grad():
            for index, batch in my_batches(chosen):
                moved = split_batch(batch, device)
                if moved.size == 0:
                    continue
                seen += moved.size
                for observer in observers:
                    observer.begin(index, moved)
                network(*moved.args, **moved.kwargs)
                if progress is not None:
                    progress(index + 1, chosen.batches)
    finally:
        for handle in handles:
            handle.remove()
    total = int(sum_across(seen))
    if total == 0:
        raise DataError("the loader is empty: there is nothing to score")
    for observer in observers:
        observer.finish(total, chosen.population(total))
    return total
