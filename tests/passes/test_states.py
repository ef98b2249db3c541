"""Counting states equals comparing with zero, whatever the shape, the layout and the type."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shoal.passes import states
from shoal.passes.states import count_states

Count = Callable[[Tensor, int, int, int], tuple[Tensor, Tensor]]

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def some_values(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers with zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(shape, generator=generator).to(dtype)
    z[torch.rand(shape, generator=generator) < 0.1] = 0.0
    z[torch.rand(shape, generator=generator) < 0.1] = -0.0
    return z


def assert_counts(z: Tensor, channel_dim: int, parts: int = 1) -> None:
    on, off = count_states(z, channel_dim, parts)
    for count, state in ((on, z > 0), (off, z < 0)):
        rows = state.movedim(channel_dim, -1)
        if parts > 1:
            expected = rows.reshape(parts, -1, rows.shape[-1]).sum(1)
        else:
            expected = rows.reshape(-1, rows.shape[-1]).sum(0)[None]
        assert count.dtype == torch.int64
        assert torch.equal(count, expected)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    data=st.data(),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(DTYPES),
)
def test_counts_equal_comparisons_with_zero(
    shape: list[int], data: st.DataObject, seed: int, dtype: torch.dtype
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    z = some_values(tuple(shape), seed, dtype).permute(order)  # any memory layout
    channel_dim = data.draw(st.integers(0, len(shape) - 1))
    by_sample = channel_dim != 0 and data.draw(st.booleans())
    assert_counts(z, channel_dim, z.shape[0] if by_sample else 1)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
@pytest.mark.parametrize("limit", [1, 7, 40, 64, 100, 1 << 19])
def test_the_size_of_chunks_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, layout: str, limit: int
) -> None:
    monkeypatch.setattr(states, "_CHUNK", limit)
    z = some_values((6, 4, 5, 2), seed=3)
    if layout == "channels_last":
        z = z.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        z = z.transpose(2, 3).contiguous().transpose(2, 3)
    for parts in (1, 2, 3, 6):
        assert_counts(z, 1, parts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_map_is_counted_exactly(dtype: torch.dtype) -> None:
    z = some_values((3, 2, 700, 700), seed=1, dtype=dtype)
    assert_counts(z, 1, 3)
    assert_counts(z.contiguous(memory_format=torch.channels_last), 1)


@pytest.mark.parametrize("count", [states._counts_on_cpu, states._counts_elsewhere])
@pytest.mark.parametrize("channel_dim", [1, 2])
@pytest.mark.parametrize("groups", [2, 4, 6])
def test_both_ways_of_counting_deal_parts_to_groups(
    count: Count, channel_dim: int, groups: int
) -> None:
    z = some_values((6, 3, 5), seed=5)
    on, off = count(z, channel_dim, 6, groups)
    for found, state in ((on, z > 0), (off, z < 0)):
        by_part = state.movedim(channel_dim, -1).sum(1)
        expected = torch.stack([by_part[group::groups].sum(0) for group in range(groups)])
        assert torch.equal(found, expected)
    z[3, 0, 1] = float("nan")
    on, off = count(z, channel_dim, 6, groups)
    for found in (on, off):
        # No true count makes up for it, and other groups are not touched.
        assert ((found + 2**40).amin(1) < 0).tolist() == [g == 3 % groups for g in range(groups)]


def test_a_nan_in_a_late_chunk_makes_its_part_negative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "_CHUNK", 8)
    z = torch.ones(5, 2, 4)
    z[3, 1, 2] = float("nan")
    on, off = count_states(z, 1, 5)
    assert on[3].min() < 0
    assert off[3].min() < 0
    assert torch.equal(on[[0, 1, 2, 4]], torch.full((4, 2), 4))


def test_infinities_have_a_sign() -> None:
    z = torch.tensor([[float("inf"), -float("inf")], [1.0, -2.0]])
    on, off = count_states(z, 1)
    assert on.tolist() == [[2, 0]]
    assert off.tolist() == [[0, 2]]


def test_nothing_counts_to_nothing() -> None:
    on, off = count_states(torch.empty(0, 3, 4), 1)
    assert on.tolist() == off.tolist() == [[0, 0, 0]]
