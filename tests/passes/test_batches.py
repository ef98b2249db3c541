"""The batches of a pass: each sample once, whatever the batches, the processes and the loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

from shoal.data import ImageLoader
from shoal.errors import ConfigError, DataError
from shoal.passes import Batches, batches, plain, set_epoch

COUNT = 23


def numbered(size: int, count: int = COUNT) -> list[tuple[Tensor, Tensor]]:
    """Batches of samples that carry their own number, as input and as target."""
    numbers = torch.arange(count)
    return [(part[:, None].float(), part) for part in numbers.split(size)]


def images(count: int = COUNT, **options: Any) -> ImageLoader:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    given = {"batch_size": 4, "mean": 0.0, "std": 1.0 / 255.0, **options}
    return ImageLoader(pixels, torch.arange(count) % 3, **given)


class Unsized(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(TensorDataset(torch.arange(COUNT)[:, None].float(), torch.arange(COUNT)))


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(batches, "rank", lambda: rank)
    monkeypatch.setattr(batches, "world", lambda: world)


def samples_of(given: Iterable[tuple[int, Any]]) -> list[int]:
    return [int(x) for _, batch in given for x in batch.args[0].flatten(1)[:, 0]]


LOADERS = {
    "a list": lambda: numbered(4),
    "one batch": lambda: numbered(COUNT),
    "single samples": lambda: numbered(1),
    "shoal's loader": lambda: images(shuffle=True, augment="flip_crop"),
    "DataLoader": lambda: DataLoader(TensorDataset(*numbered(COUNT)[0]), batch_size=5),
    "without a length": lambda: DataLoader(Unsized(), batch_size=4),
    "an empty batch between": lambda: [numbered(9)[0], (torch.zeros(0, 1),), *numbered(9)[1:]],
}


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("samples", [None, 10, COUNT, 99])
def test_the_processes_together_see_each_sample_once(
    monkeypatch: pytest.MonkeyPatch, make: Any, world: int, samples: int | None
) -> None:
    met: list[int] = []
    numbers: list[int] = []
    for rank in range(world):
        as_process(monkeypatch, rank, world)
        own = Batches(make(), samples=samples)
        mine = list(own)
        met += samples_of(mine)
        numbers += [number for number, _ in mine]
        # Without asking the others, every process knows how many samples all have seen.
        assert own.seen == min(samples or COUNT, COUNT)
        assert own.population in ((None, COUNT) if samples == 10 else (COUNT,))
        assert own.expected is None or own.expected >= own.seen
    assert len(set(met)) == len(met) == min(samples or COUNT, COUNT)
    assert len(set(numbers)) == len(numbers)
    if world == 1 and samples is None:
        assert met == list(range(COUNT))


def test_turns_tell_every_process_of_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    as_process(monkeypatch, 1, 3)
    own = Batches(numbered(4), samples=21)
    turns = [(number, batch is not None, own.seen) for number, batch in own.turns()]
    assert turns == [
        (0, False, 4), (1, True, 8), (2, False, 12), (3, False, 16), (4, True, 20), (5, False, 21),
    ]  # fmt: skip
    everything = Batches(numbered(4), shared=False)
    assert samples_of(everything) == list(range(COUNT))


def test_a_part_has_the_proportions_of_the_classes_unless_the_first_are_asked_for() -> None:
    labels = [int(y) for _, batch in Batches(images(), samples=9) for y in batch.target]  # type: ignore[union-attr]
    assert sorted(labels) == [0] * 3 + [1] * 3 + [2] * 3
    assert samples_of(Batches(images(), samples=9, stratified=False)) == list(range(9))


def test_progress_counts_batches_over_all_rounds() -> None:
    heard: list[tuple[int, int]] = []
    own = Batches(numbered(8), progress=lambda done, total: heard.append((done, total)), rounds=2)
    assert samples_of(own) == samples_of(own)
    assert heard == [(done, 6) for done in range(1, 7)]
    unknown = Batches(iter(numbered(8)), progress=lambda done, total: heard.append((done, total)))
    list(unknown)
    assert heard[6:] == [(1, 0), (2, 0), (3, 0)]


def test_what_a_loader_cannot_do_is_left_out() -> None:
    class Epochs:
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    class Sampled:
        sampler = Epochs()

    loader = Epochs()
    set_epoch(loader, 3)
    set_epoch(Sampled(), 4)
    set_epoch([], 5)
    assert (loader.epoch, Sampled.sampler.epoch) == (3, 4)
    data = numbered(4)
    assert plain(data) is data
    assert plain(images(shuffle=True)).shuffle is False  # type: ignore[attr-defined]


def test_the_epoch_is_chosen_where_a_batch_sampler_has_it() -> None:
    class Epochs(list):  # type: ignore[type-arg]
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

    data = TensorDataset(torch.arange(4.0))
    own = Epochs([[0, 1], [2, 3]])
    set_epoch(DataLoader(data, batch_sampler=own), 3)
    assert own.epoch == 3
    inner = DistributedSampler(data, num_replicas=2, rank=0)
    set_epoch(DataLoader(data, batch_sampler=BatchSampler(inner, 2, drop_last=False)), 4)
    assert inner.epoch == 4


def test_nothing_to_go_over_is_an_error() -> None:
    for loader in ([], [(torch.zeros(0, 1), torch.zeros(0))]):
        with pytest.raises(DataError, match="the loader is empty: there is nothing to look at"):
            list(Batches(loader, purpose="look at"))
    once = iter(numbered(4))
    assert samples_of(Batches(once)) == list(range(COUNT))
    with pytest.raises(DataError, match="the loader is an iterator that is used up: give a list"):
        list(Batches(once))
    with pytest.raises(ConfigError, match="samples is 0: give at least 1"):
        Batches(numbered(4), samples=0)
