"""Batches in pieces, so that what a network computes on a CPU stays small enough to be fast.

An allocator hands large tensors back to the system when they are freed (glibc above 32 MiB), and
each new one is then paid for page by page: half of the time of an image network at 224 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from shoal.data.batch import Batch
from shoal.errors import ShoalError
from shoal.modes import device_of
from shoal.network import Network
from shoal.network.runner import Runner, Tap
from shoal.seeds import preserved_rng

_LARGEST = 24 << 20  # bytes of a tensor


def samples_at_once(network: Network, batch: Batch) -> int:
    """Return how many samples of such a batch a network in eval mode should compute at a time.

    That is all of them on a GPU, where the tensors are small, and where a sample's output depends
    on the others (batch norms without running statistics), or a sample alone is refused.
    """
    device = device_of(network)
    if device.type != "cpu" or any(v.shape[:1] != (batch.size,) for v in batch.inputs):
        return batch.size
    with torch.no_grad(), preserved_rng(device):
        try:
            most = _LARGEST // max(1, _largest_bytes(network, batch.first(1)))
            if most >= batch.size or not _are_apart(network, batch.first(2)):
                return batch.size
        except (RuntimeError, ValueError, ShoalError):  # a sample alone is refused
            return batch.size
    return max(1, most)


def in_pieces(batch: Batch, at_once: int) -> Iterator[tuple[int, Batch]]:
    """Yield pieces of nearly equal size, at most `at_once`, with their first samples' numbers."""
    if at_once >= batch.size:
        yield 0, batch
        return
    size = math.ceil(batch.size / math.ceil(batch.size / at_once))
    for first in range(0, batch.size, size):
        yield first, batch.rows(slice(first, first + size))


def _largest_bytes(network: Network, batch: Batch) -> int:
    """Return the bytes of the largest tensor that a network computes for a batch."""
    found = [0]

    def note(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor):
            found[0] = max(found[0], value.nbytes)

    taps = [Tap(node, (node,), partial(note, node)) for node in network.graph.nodes]
    runner = Runner(network, taps=taps)
    runner.values(*network.inputs.flatten(batch.args, batch.kwargs))
    return found[0]


def _are_apart(network: Network, batch: Batch) -> bool:
    """Whether a network gives each sample of a batch what it gives it alone, but for rounding."""

    def outputs(part: Batch) -> list[Tensor]:
        leaves = pytree.tree_leaves(network(*part.args, **part.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    alone = [outputs(batch.rows(slice(i, i + 1))) for i in range(batch.size)]
    for together, *parts in zip(outputs(batch), *alone, strict=True):
        joined = torch.cat(parts) if all(part.dim() for part in parts) else parts[0]
        if joined.shape != together.shape:
            return False
        scale = float(together.abs().max()) if together.numel() else 0.0
        if not torch.allclose(joined, together, rtol=0.0, atol=1e-4 * scale, equal_nan=True):
            return False
    return True
