"""Count how often each neuron is ON and OFF, fast and without storing activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 2 MiB of float32: the signs of a chunk stay in a CPU's cache, which makes the count several times
# faster. Their sums are exact in float32.
_CHUNK = 1 << 19
_CHUNK_GPU = 1 << 24

NAN_COUNT = -(1 << 48)
"""The count where there is a NaN: no sum of true counts brings it back above zero."""


def count_states(
    z: Tensor, channel_dim: int, parts: int = 1, groups: int | None = None
) -> tuple[Tensor, Tensor]:
    """Count the positive and the negative entries of each channel; zeros count as neither.

    Args:
        z: a rectifier's input, any shape and memory layout.
        channel_dim: the dimension that holds the channels.
        parts: equal slices of dimension 0 to count separately (the samples of a batch); more than
            1 only where another dimension holds the channels.
        groups: deal the parts in turn to this many groups, at most as many as parts, and add each
            group up. None keeps the parts apart.

    Returns:
        (ON, OFF): int64, shape [groups or parts, channels], on the device of `z`. A NaN makes the
        counts of its part, and every sum that includes them, negative.
    """
    z = z.detach()
    if z.dim() == 1:
        z, channel_dim = z[None], 1
    if channel_dim == 0:
        z, channel_dim = z.movedim(0, -1), z.dim() - 1
    count = _counts_on_cpu if z.device.type == "cpu" else _counts_elsewhere
    if z.numel() == 0:
        none = torch.zeros(groups or parts, z.shape[channel_dim], dtype=torch.int64)
        return none.to(z.device), none.to(z.device)
    return count(z, channel_dim, parts, groups or parts)


def _counts_on_cpu(z: Tensor, channel_dim: int, parts: int, groups: int) -> tuple[Tensor, Tensor]:
    """Count by sums of signs: only three steps go over as many entries as `z` has."""
    positions = z.numel() // (parts * z.shape[channel_dim])  # of a part
    exact = torch.float32 if positions * parts < 1 << 24 else torch.float64
    surplus = torch.zeros(parts, z.shape[channel_dim], dtype=exact)  # ON minus OFF
    zeros: Tensor | None = None
    scratch = torch.empty(0)
    for first, count, chunk in chunks_of_parts(z, parts, _CHUNK):
        values, dims = _with_channels_apart(chunk, channel_dim, count)
        if scratch.numel() < values.numel():
            scratch = torch.empty(values.numel())
        flat = scratch[: values.numel()]
        signs = flat.view(values.shape)
        if values.dtype == signs.dtype:
            torch.sign(values, out=signs)
        else:
            signs.copy_(values.sign())
        surplus[first : first + count] += signs.sum(dims)
        if not torch.prod(flat):  # a zero, or NaN; without one the surplus tells both counts
            zeros = torch.zeros_like(surplus) if zeros is None else zeros
            zeros[first : first + count] += _zeros(values, signs, dims)
    surplus = _dealt(surplus, groups)
    active = torch.full_like(surplus, float(positions))
    if parts > groups:
        active *= torch.arange(parts).remainder(groups).bincount()[:, None]
    if zeros is not None:
        active -= _dealt(zeros, groups)
    on = surplus.add_(active).div_(2).long()
    return on, active.long() - on


def _zeros(values: Tensor, signs: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return how many entries of each part and channel are 0: a huge number where one is NaN."""
    inactive: Tensor = (1.0 - signs.square_()).sum(dims)  # the sign of NaN is 0
    if bool(values.isnan().any()):
        inactive.masked_fill_(values.isnan().sum(dims) > 0, -2.0 * NAN_COUNT)
    return inactive


def _dealt(counts: Tensor, groups: int) -> Tensor:
    """Add up the rows i, i + groups, i + 2·groups and so on, for each group i."""
    if len(counts) % groups == 0:
        return counts.view(-1, groups, counts.shape[1]).sum(0)
    index = torch.arange(len(counts), device=counts.device) % groups
    return counts.new_zeros(groups, counts.shape[1]).index_add_(0, index, counts)


def _counts_elsewhere(
    z: Tensor, channel_dim: int, parts: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Count by comparisons: where each step is a kernel, they move the least memory."""
    on = torch.zeros((parts, z.shape[channel_dim]), dtype=torch.int64, device=z.device)
    off = torch.zeros_like(on)
    for first, count, chunk in chunks_of_parts(z, parts, _CHUNK_GPU):
        values, dims = _with_channels_apart(chunk, channel_dim, count)
        broken = values.isnan().sum(dims) > 0
        for counts, state in ((on, values > 0), (off, values < 0)):
            counts[first : first + count] += state.sum(dims).masked_fill_(broken, NAN_COUNT)
    return _dealt(on, groups), _dealt(off, groups)


def chunks_of_parts(z: Tensor, parts: int, limit: int) -> Iterator[tuple[int, int, Tensor]]:
    """Cut dimension 0 into chunks of at most `limit` entries, or of one row where that is more.

    `parts` divides dimension 0, and `z` has at least one entry. Yields the first part, the number
    of parts, and a view of whole parts or of a piece of one.
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
    """Return a contiguous tensor, a view if that can be, and all dims but parts and channels."""
    channels = chunk.shape[channel_dim]
    rows = chunk.movedim(channel_dim, -1)
    if rows.is_contiguous():  # channels_last, tokens × channels, N × C
        return rows.view(parts, -1, channels), (1,)
    inner = chunk.shape[channel_dim + 1 :].numel()
    return chunk.contiguous().view(parts, -1, channels, inner), (1, 3)
