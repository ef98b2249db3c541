"""`samples=` uses a part of the data and tells how far from the whole its scores may be."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shoal.data import ImageLoader
from shoal.errors import ConfigError, DataError
from shoal.importance import score
from shoal.network import Network, capture


@cache
def two_sites() -> Network:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 2),
    )  # fmt: skip
    return capture(model, torch.randn(2, 3, 6, 6))


def pixels(count: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Images whose brightness depends on their class, classes one after the other."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) * classes // count
    level = 40 + 50 * labels[:, None, None, None]
    noise = torch.randint(-40, 41, (count, 3, 6, 6), generator=generator)
    return (level + noise).clamp(0, 255).to(torch.uint8), labels


def loader(count: int, **options: object) -> ImageLoader:
    images, labels = pixels(count)
    given = {"batch_size": 16, "mean": (0.5,), "std": (0.25,), **options}
    return ImageLoader(images, labels, **given)  # type: ignore[arg-type]


def test_all_data_leave_no_error() -> None:
    network = two_sites()
    scores = score(network, loader(60))
    assert scores.samples == 60
    assert scores.settled is True
    assert dict(scores.standard_errors) == dict.fromkeys(scores, 0.0)
    more = score(network, loader(60), samples=1000)
    assert more == scores
    assert more.settled is True
    assert set(more.standard_errors.values()) == {0.0}


def test_shoals_loaders_choose_the_classes_in_proportion() -> None:
    network, data = two_sites(), loader(400, shuffle=True, augment="flip_crop")
    scores = score(network, data, samples=40)
    assert scores.samples == 40
    assert scores == score(network, data.plain().take(40))
    assert min(scores.standard_errors.values()) > 0


@pytest.mark.parametrize("size", [1, 7, 40, 64])
def test_other_loaders_give_their_first_samples(size: int) -> None:
    network = two_sites()
    x = torch.randn(64, 3, 6, 6)
    first = score(network, [x[:40]])
    batches = DataLoader(TensorDataset(x, torch.zeros(64)), batch_size=size)
    for given in (batches, x.split(size), [{"x": b, "y": b[:, 0, 0, 0]} for b in x.split(size)]):
        if isinstance(given, list):
            given = [(b["x"], b["y"]) for b in given]
        part = score(network, given, samples=40)
        assert part.samples == 40
        assert dict(part) == pytest.approx(dict(first), abs=1e-6)
        assert min(part.standard_errors.values()) > 0


def test_the_first_samples_of_batches_by_keyword_or_with_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.relu(a + b)

    a, b = torch.randn(10, 3), torch.randn(10, 3)
    network = capture(Two(), {"a": a, "b": b})
    expected = score(network, [{"a": a[:7], "b": b[:7]}])
    assert score(network, [{"a": a, "b": b, "labels": torch.zeros(10)}], samples=7) == expected
    network = capture(Two(), (a, b))
    assert score(network, [(a, b, torch.zeros(10))], samples=7) == expected


def test_too_few_samples_to_judge_have_no_errors() -> None:
    scores = score(two_sites(), loader(400), samples=5)
    assert scores.standard_errors == {}
    assert scores.settled is None


@pytest.mark.parametrize("samples", [64, 200])
@pytest.mark.parametrize("batch_size", [16, 100])
def test_the_standard_error_is_the_scatter_over_subsets(samples: int, batch_size: int) -> None:
    network = two_sites()
    everything = loader(320, batch_size=320)
    whole = score(network, everything)
    found, errors = [], []
    for seed in range(40):
        data = loader(320, batch_size=batch_size, seed=seed)
        scores = score(network, data, samples=samples)
        found.append(list(scores.values()))
        errors.append(list(scores.standard_errors.values()))
    scatter = np.std(np.array(found) - list(whole.values()), axis=0)
    told = np.mean(errors, axis=0)
    assert (told < 1.5 * scatter).all(), told / scatter
    assert (told > scatter / 1.5).all(), told / scatter


def test_settled_says_whether_the_lowest_is_surely_the_lowest() -> None:
    class Two(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift = shift

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.shift) + torch.relu(x.flip(0) - 1e-4)

    torch.manual_seed(0)
    x = torch.randn(4000, 5)
    batches = [x[:1500], x[1500:]]
    apart = score(capture(Two(2.0), x[:2]), batches, samples=1500)
    assert apart.settled is True
    assert apart.lowest() == ["relu"]
    near = score(capture(Two(0.01), x[:2]), batches, samples=1500)
    assert near.settled is False


def test_pooling_by_batch_has_errors_from_its_batches() -> None:
    scores = score(two_sites(), loader(640, batch_size=4), samples=160, pooling="batch")
    assert min(scores.standard_errors.values()) > 0
    few = score(two_sites(), loader(640, batch_size=32), samples=160, pooling="batch")
    assert few.settled is None


def test_bad_requests_say_what_to_do() -> None:
    network = two_sites()
    with pytest.raises(ConfigError, match="samples is 0"):
        score(network, loader(60), samples=0)
    with pytest.raises(DataError, match="the loader is empty"):
        score(network, [])
    with pytest.raises(DataError, match="the loader is empty"):
        score(network, [torch.empty(0, 3, 6, 6)])
