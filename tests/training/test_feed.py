"""What each process gets of a loader: together they train on the batches of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import shoal.training.feed as feed
from shoal.passes.batches import is_sharded

DATA = TensorDataset(torch.arange(10)[:, None].float(), torch.arange(10))


class Moving:
    """A batch sampler of one's own, which begins one later in each epoch."""

    epoch = 0
    batch_size, drop_last = 4, False  # of which it says more than it holds

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        order = [(self.epoch + place) % 10 for place in range(10)]
        return iter([order[:4], order[4:6], order[6:8], order[8:]])

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def epochs(
    loader: Any, patch: pytest.MonkeyPatch, rank: int, world: int, count: int = 2
) -> list[list[list[int]]]:
    """Return the samples of the batches of some epochs, as one of several processes gets them."""
    patch.setattr(feed, "rank", lambda: rank)
    patch.setattr(feed, "world", lambda: world)
    made = feed.Feed(loader, 3, torch.device("cpu"), False, 0)
    found = [
        [[int(y) for y in batch.target] for batch in made.epoch(number)] for number in range(count)
    ]
    assert all(len(batches) == len(made) for batches in found)
    made.close()
    return found


def together(loader: Any, patch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Return what two processes get, of each batch the two slices put together in order."""
    pair = [epochs(loader, patch, rank, 2) for rank in range(2)]
    return [
        [sorted(one + other) for one, other in zip(*batches, strict=True)]
        for batches in zip(*pair, strict=True)
    ]


LOADERS: dict[str, Callable[[], Any]] = {
    "a short last batch": lambda: DataLoader(DATA, batch_size=8, shuffle=True),
    "a last batch left out": lambda: DataLoader(DATA, batch_size=8, shuffle=True, drop_last=True),
    "odd batches": lambda: DataLoader(DATA, batch_size=5, shuffle=True),
    "a generator": lambda: DataLoader(
        DATA, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "batches of one's own": lambda: DataLoader(DATA, batch_sampler=Moving()),
    "batches in a list": lambda: DataLoader(
        DATA, batch_sampler=[[0, 1, 2, 3], [4, 5], [6, 7], [8, 9]]
    ),
    "a worker that stays": lambda: DataLoader(
        DATA, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "no DataLoader": lambda: [DATA[:4], DATA[4:6], DATA[6:]],
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_two_processes_share_the_batches_of_one(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = epochs(make(), monkeypatch, 0, 1)
    assert together(make(), monkeypatch) == [[sorted(b) for b in batches] for batches in whole]
    for batches in whole:
        samples = sorted(chain(*batches))
        assert samples == sorted(set(samples))  # each once


def test_each_process_loads_its_own_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(TensorDataset):
        loaded = 0

        def __getitem__(self, place: int) -> tuple[Tensor, ...]:
            Counted.loaded += 1
            return super().__getitem__(place)

    loader = DataLoader(Counted(*DATA.tensors), batch_size=8, shuffle=True)
    epochs(loader, monkeypatch, 1, 2, count=1)
    assert Counted.loaded == 5


def test_what_is_sharded_already_is_not_sharded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process has half of the data, each sample once, and another half in each epoch."""
    seen: list[list[list[int]]] = []
    for rank in range(2):
        sampler = DistributedSampler(DATA, 2, rank, seed=7)
        loaders = [
            DataLoader(DATA, batch_sampler=BatchSampler(sampler, 2, drop_last=False)),
            DataLoader(DATA, batch_size=2, sampler=sampler),
        ]
        assert all(is_sharded(loader) for loader in loaders)
        own, other = (epochs(loader, monkeypatch, rank, 2) for loader in loaders)
        assert own == other
        assert [len(batch) for batch in own[0]] == [2, 2, 1]
        assert own[0] != own[1]
        seen.append([[*chain(*batches)] for batches in own])
    for halves in zip(*seen, strict=True):
        assert sorted(chain(*halves)) == list(range(10))


def test_more_processes_than_samples_in_a_batch_share_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process without a sample could not take part in the step."""
    loader = DataLoader(DATA, batch_size=4)
    for rank, last in enumerate(([8], [9], [8])):
        assert epochs(loader, monkeypatch, rank, 3, count=1)[0][-1] == last


def test_a_users_loader_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.Generator().manual_seed(1)
    loader, before = DataLoader(DATA, batch_size=4, shuffle=True, generator=own), own.get_state()
    batches = loader.batch_sampler
    epochs(loader, monkeypatch, 0, 2)
    assert torch.equal(own.get_state(), before)
    assert loader.batch_sampler is batches
