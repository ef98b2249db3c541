from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.split import (
    random_split,
    shuffled,
    stratified_counts,
    stratified_split,
    stratified_subset,
)
from shoal.errors import ConfigError, DataError
from shoal.seeds import generator

LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 40, 10]))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.data())
def test_counts_add_up_and_are_the_share_rounded_up_or_down(sizes, data):
    total = data.draw(st.integers(0, sum(sizes)))
    counts = stratified_counts(sizes, total)
    assert counts.sum() == total
    for size, count in zip(sizes, counts, strict=True):
        assert abs(count - size * total / sum(sizes)) < 1
        assert 0 <= count <= size


@settings(max_examples=30)
@given(
    st.lists(st.integers(2, 30), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
)
def test_split_is_disjoint_covers_all_and_has_every_class_on_both_sides(sizes, fraction, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    part, rest = stratified_split(labels, fraction, seed=seed, purpose="validation")
    np.testing.assert_array_equal(np.sort(np.concatenate([part, rest])), np.arange(len(labels)))
    assert set(labels[part]) == set(labels[rest]) == set(labels)


def test_split_keeps_proportions():
    part, rest = stratified_split(LABELS, 0.2, seed=3, purpose="validation")
    assert np.bincount(LABELS[part]).tolist() == [20, 8, 2]
    assert np.bincount(LABELS[rest]).tolist() == [80, 32, 8]


def test_subset_keeps_proportions_and_lies_within_a_larger_one():
    small, large = (stratified_subset(LABELS, n, seed=1, purpose="train") for n in (15, 75))
    assert np.bincount(LABELS[small]).tolist() == [10, 4, 1]
    assert set(small) <= set(large)
    assert np.all(np.diff(small) > 0)
    assert len(stratified_subset(LABELS, 1000, seed=1, purpose="train")) == len(LABELS)


def test_seeds_and_purposes_choose_differently():
    draws = [
        stratified_subset(LABELS, 30, seed=seed, purpose=purpose).tolist()
        for seed, purpose in ((0, "a"), (1, "a"), (0, "b"))
    ]
    assert draws[0] != draws[1]
    assert draws[0] != draws[2]
    assert draws[0] == stratified_subset(LABELS, 30, seed=0, purpose="a").tolist()


@pytest.mark.long
def test_the_choice_is_the_same_in_a_process_with_another_hash_seed():
    code = (
        "import numpy as np; from shoal.data.split import stratified_subset;"
        "print(stratified_subset(np.arange(99) % 3, 9, seed=5, purpose='val').tolist())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    here = stratified_subset(np.arange(99) % 3, 9, seed=5, purpose="val")
    assert output.strip() == str(here.tolist())


def test_shuffled_is_a_permutation():
    order = shuffled(np.arange(50), seed=0, purpose="x")
    assert sorted(order) == list(range(50))
    assert order.tolist() != list(range(50))


def test_a_class_with_one_sample_cannot_be_split():
    with pytest.raises(DataError, match="class 'dog' has only 1 image"):
        stratified_split(
            np.array([0, 0, 0, 1]), 0.5, seed=0, purpose="validation", classes=["cat", "dog"]
        )


def test_nonsense_is_refused():
    with pytest.raises(ConfigError, match=r"fraction is 1\.5"):
        stratified_split(LABELS, 1.5, seed=0, purpose="validation")
    with pytest.raises(ConfigError, match="count is 0"):
        stratified_subset(LABELS, 0, seed=0, purpose="train")
    with pytest.raises(ConfigError, match="seed is -1"):
        generator(-1, "order")


def test_a_random_split_is_pytorchs_own() -> None:
    val, train = random_split(50_000, 5_000, 0)
    assert val[:5].tolist() == [19260, 3355, 49230, 27606, 38031]  # EASIER's, of CIFAR-10
    assert int(val.sum()) == 125_688_301
    torch.manual_seed(7)
    first, second = torch.utils.data.random_split(range(100), [90, 10])
    val, train = random_split(100, 10, 7)
    assert (train.tolist(), val.tolist()) == (list(first.indices), list(second.indices))
