"""Count how often each neuron is ON and OFF, fast and without storing activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["NAN_COUNT", "chunks_of_parts", "count_states"]

# 2 MiB of float32: the signs of a chunk stay in a CPU's cache instead of going through memory,
# which makes the count several times faster. Sums of so many signs are exact in float32.
_CHUNK = 1 << 19
_CHUNK_GPU = 1 << 24

NAN_COUNT = -(1 << 48)
"""What a NaN makes a count: no sum of true counts brings it back above zero."""


def count_states(z: Tensor, channel_dim: int, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Count the positive and the negative entries of each channel; zeros count as neither.

    Args:
        z: a rectifier's input, any shape and memory layout.
        channel_dim: the dimension that holds the channels.
        parts: count so many equal slices of dimension 0 apart (the samples of a batch); more than
            1 only where another dimension holds the channels.

    Returns:
        (ON, OFF): int64, shape [parts, channels], on the device of `z`. A NaN makes counts of its
        part, and every sum they enter, negative.
    """
    z = z.detach()
    if z.dim() == 1:
        z, channel_dim = z[None], 1
    if channel_dim == 0:
        z, channel_dim = z.movedim(0, -1), z.dim() - 1
    on = torch.zeros((parts, z.shape[channel_dim]), dtype=torch.int64, device=z.device)
    off = torch.zeros_like(on)
    if z.numel() == 0:
        return on, off
    on_cpu = z.device.type == "cpu"
    limit = _CHUNK if on_cpu else _CHUNK_GPU
    signs = torch.empty(0)
    for first, count, chunk in chunks_of_parts(z, parts, limit):
        values, dims = _with_channels_apart(chunk, channel_dim, count)
        if on_cpu:
            if signs.numel() < values.numel():
                signs = torch.empty(values.numel())
            positive, negative = _count_on_cpu(values, dims, signs[: values.numel()])
        else:
            positive, negative = _count_elsewhere(values, dims)
        on[first : first + count] += positive
        off[first : first + count] += negative
    return on, off


def chunks_of_parts(z: Tensor, parts: int, limit: int) -> Iterator[tuple[int, int, Tensor]]:
    """Cut dimension 0 into chunks of at most `limit` entries, or of one row where that is more.

    Args:
        z: anything with at least one entry.
        parts: how many equal slices dimension 0 consists of; it divides its size.
        limit: in entries.

    Yields:
        (the first part, the number of parts, a view of `z`): whole parts or a piece of one.
    """
    rows, entries = z.shape[0] // parts, z[0].numel()
    if rows * entries <= limit:
        step = limit // (rows * entries)
        for first in range(0, parts, step):
            count = min(step, parts - first)
            yield first, count, z[first * rows : (first + count) * rows]
        return
    for part in range(parts):
        for piece in z[part * rows : (part + 1) * rows].split(max(1, limit // entries)):
            yield part, 1, piece


def _with_channels_apart(
    chunk: Tensor, channel_dim: int, parts: int
) -> tuple[Tensor, tuple[int, ...]]:
    """Return a contiguous tensor, and its dimensions beside those of parts and channels.

    It is a view, but for a layout that is neither channels-first nor channels-last.
    """
    channels = chunk.shape[channel_dim]
    rows = chunk.movedim(channel_dim, -1)
    if rows.is_contiguous():  # channels_last, tokens × channels, N × C
        return rows.view(parts, -1, channels), (1,)
    inner = chunk.shape[channel_dim + 1 :].numel()
    return chunk.contiguous().view(parts, -1, channels, inner), (1, 3)


def _count_on_cpu(values: Tensor, dims: tuple[int, ...], scratch: Tensor) -> tuple[Tensor, Tensor]:
    signs = scratch.view(values.shape)
    if values.dtype == signs.dtype:
        torch.sign(values, out=signs)
    else:
        signs.copy_(values.sign())
    surplus = signs.sum(dims)  # ON minus OFF
    nonzero = int(torch.dot(scratch, scratch))
    if nonzero == values.numel():  # the usual case: one reduction tells both counts
        active = torch.full_like(surplus, values.numel() // surplus.numel())
    elif bool(values.isnan().any()):  # the sign of NaN is 0
        active, surplus = surplus.fill_(2 * NAN_COUNT), torch.zeros_like(surplus)
    else:
        active = signs.square_().sum(dims)
    return ((active + surplus) / 2).long(), ((active - surplus) / 2).long()


def _count_elsewhere(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    positive, negative = (values > 0).sum(dims), (values < 0).sum(dims)
    broken = values.isnan().sum(dims) > 0
    return positive.masked_fill_(broken, NAN_COUNT), negative.masked_fill_(broken, NAN_COUNT)
