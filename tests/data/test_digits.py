from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from shoal.data import load_data
from shoal.data.augment import Augment
from shoal.errors import ConfigError, DataError


def rows(loader):
    x = torch.cat([x for x, _ in loader.plain()])
    return [tuple(row) for row in x.flatten(1).mul(127.5).add(127.5).round().int().tolist()]


def test_parts_cover_the_digits_and_are_disjoint():
    data = load_data("digits")
    parts = [rows(part) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [1257, 270, 270]
    expected = np.round(load_digits().data * (255 / 16)).astype(int)
    assert sorted([*parts[0], *parts[1], *parts[2]]) == sorted(map(tuple, expected.tolist()))


def test_every_part_is_stratified_and_in_mixed_order():
    data = load_data("digits")
    whole = np.bincount(load_digits().target) / 1797
    for part in (data.train, data.val, data.test):
        shares = torch.bincount(part.labels) / part.num_samples
        np.testing.assert_allclose(shares, whole, atol=0.005)
        assert len(set(part.labels[:50].tolist())) >= 8


def test_shape_classes_and_statistics():
    data = load_data("digits")
    assert data.sample_shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert (data.num_classes, data.mean, data.std) == (10, (0.5,), (0.5,))
    assert data.train.augment == Augment()
    x, _ = next(iter(data.val))
    assert float(x.min()) == pytest.approx(-1)
    assert float(x.max()) == pytest.approx(1)


def test_a_seed_is_a_split():
    first, same, other = (load_data("digits", seed=seed) for seed in (0, 0, 1))
    assert rows(first.val) == rows(same.val)
    assert rows(first.val) != rows(other.val)


def test_limits_change_only_their_own_part():
    whole, limited = load_data("digits"), load_data("digits", train_samples=100, val_samples=50)
    assert (limited.train.num_samples, limited.val.num_samples) == (100, 50)
    assert rows(limited.test) == rows(whole.test)
    assert set(rows(limited.val)) <= set(rows(whole.val))
    assert set(rows(limited.train)) <= set(rows(whole.train))


def test_more_samples_than_there_are_is_noted():
    data = load_data("digits", train_samples=5000)
    assert data.train.num_samples == 1257
    assert data.notes == ("train_samples=5000 asked for, all 1257 training images are used",)


def test_options():
    data = load_data(
        "digits", image_size=16, val_fraction=0.3, batch_size=32, eval_batch_size=64,
        mean=(0.3,), std=(0.4,), augment="shift",
    )  # fmt: skip
    assert data.sample_shape == (1, 16, 16)
    assert data.val.num_samples == pytest.approx(0.3 * 1797, abs=5)
    assert data.test.num_samples == 270
    assert (data.train.batch_size, data.val.batch_size, data.test.batch_size) == (32, 64, 64)
    assert (data.mean, data.std) == ((0.3,), (0.4,))
    assert data.train.augment == Augment(crop=1)
    assert data.val.augment == data.test.augment == Augment()
    assert data.train.shuffle
    assert not data.val.shuffle


@pytest.mark.parametrize(
    ("spec", "options", "error", "message"),
    [
        ("digits:somewhere", {}, ConfigError, "no folder"),
        ("digits", {"train_samples": 5}, DataError, "fewer than the 10 classes"),
        ("digits", {"val_fraction": 0.9}, ConfigError, "leaves no image to train on"),
        ("digits", {"val_fraction": 1.0}, ConfigError, "val_fraction is 1.0"),
        ("digits", {"batch_size": 0}, ConfigError, "batch_size is 0"),
        ("digits", {"seed": -1}, ConfigError, "seed is -1"),
        ("digits", {"image_size": 5000}, DataError, "GiB of memory"),
    ],
)
def test_what_cannot_be(spec, options, error, message):
    with pytest.raises(error, match=message) as caught:
        load_data(spec, **options)
    assert "\n" not in str(caught.value)
