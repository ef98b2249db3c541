from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shoal.data.loader import ImageLoader
from shoal.tasks import find_task, with_own
from shoal.training import EpochReport, Recipe, fit

Net = Callable[[], nn.Module]
Images = Callable[..., ImageLoader]


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stop_after(epoch: int) -> Callable[[EpochReport], None]:
    def stop(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_resuming_ends_like_an_uninterrupted_fit(
    norm_net: Net, augmented: ImageLoader, tmp_path: Path, optimizer: str, epoch: int
) -> None:
    recipe = Recipe(optimizer=optimizer, lr=0.01, warmup_epochs=1)
    whole, parted = norm_net(), norm_net()
    expected = fit(whole, augmented, epochs=4, recipe=recipe)
    path = tmp_path / "state" / "fit.pt"
    options = {"epochs": 4, "recipe": recipe, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        fit(parted, augmented, on_epoch=stop_after(epoch), **options)
    parted = norm_net()
    report = fit(parted, augmented, **options)
    assert report.resumed_from == epoch
    assert same(weights(whole), weights(parted))
    assert [e.loss for e in report.epochs] == [e.loss for e in expected.epochs]
    assert [p.name for p in path.parent.iterdir()] == ["fit.pt"]


def test_resuming_with_a_users_loader_ends_alike(norm_net: Net, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(20, 3, 8, 8, generator=generator),
        torch.randint(0, 4, (20,), generator=generator),
    )
    loader = DataLoader(data, batch_size=5, shuffle=True, generator=generator)
    whole, parted = norm_net(), norm_net()
    fit(whole, loader, epochs=3)
    with pytest.raises(KeyboardInterrupt):
        fit(parted, loader, epochs=3, checkpoint=tmp_path / "c", on_epoch=stop_after(2))
    fit(parted, loader, epochs=3, checkpoint=tmp_path / "c")
    assert same(weights(whole), weights(parted))


class Noisy(TensorDataset):
    """Draws from torch's random numbers for each sample, as augmentations do."""

    def __getitem__(self, place: int) -> tuple[Tensor, ...]:
        x, y = super().__getitem__(place)
        return x + torch.randn(x.shape), y


def test_workers_that_stay_draw_alike_in_each_fit_and_in_one_that_goes_on(
    plain_net: Net, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    data = Noisy(torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 4)
    loader = DataLoader(data, batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)
    whole, again, parted = plain_net(), plain_net(), plain_net()
    fit(whole, loader, epochs=2)
    fit(again, loader, epochs=2)
    assert same(weights(whole), weights(again))
    with pytest.raises(KeyboardInterrupt):
        fit(parted, loader, epochs=2, checkpoint=tmp_path / "c", on_epoch=stop_after(1))
    fit(parted, loader, epochs=2, checkpoint=tmp_path / "c")
    assert same(weights(whole), weights(parted))


def test_numbers_of_numpy_do_not_keep_a_fit_from_going_on(
    plain_net: Net, images: Images, tmp_path: Path
) -> None:
    recipe = Recipe(lr=np.float64(0.01), milestones=(np.float64(0.5),))
    options = {"epochs": 2, "recipe": recipe, "seed": np.int64(0), "checkpoint": tmp_path / "c"}
    with pytest.raises(KeyboardInterrupt):
        fit(plain_net(), images(), on_epoch=stop_after(1), **options)
    report = fit(plain_net(), images(), **options)
    assert (report.resumed_from, report.notes) == (1, ())
    options |= {"seed": 0, "recipe": Recipe(lr=0.01, milestones=(0.5,))}
    assert fit(plain_net(), images(), **options).resumed_from == 2


def test_a_finished_fit_is_not_trained_again(norm_net: Net, images: Images, tmp_path: Path) -> None:
    one, two = norm_net(), norm_net()
    first = fit(one, images(), epochs=2, checkpoint=tmp_path / "c")
    second = fit(two, images(), epochs=2, checkpoint=tmp_path / "c")
    assert second.epochs == first.epochs
    assert same(weights(one), weights(two))


def test_the_best_epoch_survives_an_interruption(
    plain_net: Net, images: Images, tmp_path: Path
) -> None:
    val = [(x, (y + 1) % 4) for x, y in images(64)]
    recipe = Recipe(precision="fp32", lr=0.3, early_stop=3)
    options = {"epochs": 30, "recipe": recipe, "val": val}
    whole, parted = plain_net(), plain_net()
    expected = fit(whole, images(64), **options)
    last = len(expected.epochs) - 1
    with pytest.raises(KeyboardInterrupt):
        fit(parted, images(64), checkpoint=tmp_path / "c", on_epoch=stop_after(last), **options)
    report = fit(parted, images(64), checkpoint=tmp_path / "c", **options)
    assert report.best_epoch == expected.best_epoch
    assert same(weights(whole), weights(parted))


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_a_damaged_file_starts_the_fit_over(
    plain_net: Net, images: Images, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "c"
    path.write_bytes(content)
    fresh, net = plain_net(), plain_net()
    fit(fresh, images(), epochs=1)
    report = fit(net, images(), epochs=1, checkpoint=path)
    assert report.resumed_from is None
    assert "damaged" in report.notes[0]
    assert same(weights(fresh), weights(net))
    assert fit(plain_net(), images(), epochs=1, checkpoint=path).resumed_from == 1


def test_a_file_of_another_fit_starts_the_fit_over(
    plain_net: Net, images: Images, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    fit(plain_net(), images(), epochs=2, checkpoint=path)
    for options in ({"epochs": 1}, {"epochs": 2, "seed": 1}, {"epochs": 2, "recipe": "vit"}):
        copy = tmp_path / "copy"
        copy.write_bytes(path.read_bytes())
        report = fit(plain_net(), images(), checkpoint=copy, **options)
        assert report.resumed_from is None
        assert "another fit" in report.notes[0]
    torch.save({"state_dict": {}}, path)
    assert "unknown format" in fit(plain_net(), images(), epochs=1, checkpoint=path).notes[0]


def test_a_pickle_that_runs_code_is_not_run(plain_net: Net, images: Images, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"format": "shoal.fit", "version": 1, "state": Evil()}, tmp_path / "c")
    fit(plain_net(), images(), epochs=1, checkpoint=tmp_path / "c")
    assert not (tmp_path / "ran").exists()


def half(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target) / 2


def twice(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target) * 2


@pytest.mark.parametrize(
    ("begun", "now"),
    [
        ({"loss": half}, {"loss": twice}),
        ({}, {"loss": twice}),
        ({"task": with_own(find_task("segment"), evaluate=lambda *_: 1.0)}, {}),
        ({"task": "segment?ignore_index=0"}, {"task": "segment"}),
    ],
)
def test_a_fit_does_not_go_on_with_another_loss_or_task(
    images: Images, tmp_path: Path, begun: dict[str, Any], now: dict[str, Any]
) -> None:
    net = nn.Conv2d(3, 4, 8)  # [B, 4, 1, 1]
    data = [(x, y.reshape(-1, 1, 1)) for x, y in images()]
    options = {"epochs": 1, "checkpoint": tmp_path / "c", "task": "segment"}
    fit(net, data, **{**options, **begun})
    assert fit(net, data, **{**options, **begun}).resumed_from == 1
    report = fit(net, data, **{**options, **now})
    assert report.resumed_from is None
    assert "another fit" in report.notes[0]
