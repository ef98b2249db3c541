"""Scenarios that must end alike in one process and in two; run by a launcher, or imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from shoal.data.augment import Augment
from shoal.data.loader import ImageLoader
from shoal.distributed import is_main, rank, sum_across, world
from shoal.network import capture
from shoal.tasks import find_task, with_own
from shoal.training import Recipe, evaluate, fit

FP32 = Recipe(precision="fp32", lr=0.05)


class TwoHeads(nn.Module):
    """Has a parameter that nothing uses, and an output that takes no part in the loss."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head, self.aside = nn.Linear(6, 4), nn.Linear(6, 2)
        self.unused = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3))
        return {"aside": self.aside(features), "logits": self.head(features)}


class Uneven(list):  # type: ignore[type-arg]
    """A batch sampler whose batches are not all as large as it says."""

    batch_size, drop_last = 4, False


def plain_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))


def figures(task: str = "classify", **options: Any) -> dict[str, Any]:
    """Return what evaluating finds, numbers alone."""
    data = images(45, batch_size=7)
    if task == "multilabel":  # a quality that is no mean over samples
        data = [(x, nn.functional.one_hot(y, 4)) for x, y in data]
    found = evaluate(plain_net(), data, task=task, **options).to_dict()
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def hooks() -> dict[str, Any]:
    def smaller(network: nn.Module, values: Mapping[str, Any]) -> Tensor:
        return values["1"].square().mean() + 0.1 * network.get_parameter("3.weight").square().sum()

    def faster(network: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [network.get_parameter("0.bias")], "lr": 0.2, "optimizer": "adam"}]

    def masked(network: nn.Module) -> None:
        network.get_parameter("0.weight")[0].zero_()

    net = capture(plain_net(), torch.zeros(2, 3, 8, 8))
    return {
        "net": net, "penalty": smaller, "at": ["1"], "groups": faster, "after_step": masked,
    }  # fmt: skip


def images(count: int, **options: Any) -> ImageLoader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (count,), generator=generator)
    given = {"batch_size": 16, "mean": (0.5,), "std": (0.25,), "num_classes": 4, **options}
    return ImageLoader(pixels, labels, **given)


def tensors(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 3, 8, 8, generator=generator)
    return TensorDataset(x, torch.randint(0, 4, (count,), generator=generator))


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def trained(train: Any, net: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    net = plain_net() if net is None else net
    report = fit(net, train, **{"epochs": 2, "recipe": FP32, **options})
    losses = torch.tensor([e.loss for e in report.epochs], dtype=torch.float64)
    return {"losses": losses, **state(net)}


def compiled(train: Any) -> dict[str, Any]:
    """Train compiled, by the backend that takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.training.compiled.BACKEND", "eager")
        return trained(train, recipe={**FP32.to_dict(), "compile_training": "on"})


def own_way() -> dict[str, Any]:
    """Return a quality and a hook that say something else in each process."""
    judged: list[float] = []

    def quality(network: nn.Module, data: Any) -> float:
        judged.append(len(judged) if rank() else -len(judged))
        return judged[-1]

    task = with_own(find_task(), evaluate=quality)
    return {"task": task, "after_epoch": lambda network: rank() == 0 and len(judged) == 4}


def scenarios(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what each scenario ends with, the same in every process."""
    shuffled = {"shuffle": True, "augment": Augment(flip=True, crop=1), "seed": 3}
    early = Recipe(precision="fp32", lr=0.3, early_stop=2)
    pair = {**FP32.to_dict(), "accumulate": 2}
    return {
        "evaluate": figures(),
        "limit": figures(limit=20),
        "mAP": figures(task="multilabel"),
        "shoal loader": trained(images(45, **shuffled)),
        "accumulate": trained(images(45, **shuffled), recipe=pair),
        "users loader": trained(DataLoader(tensors(40), batch_size=8, shuffle=True)),
        "odd batches": trained(DataLoader(tensors(40), batch_size=7, shuffle=True)),
        "short last batch": trained(DataLoader(tensors(10), batch_size=8, shuffle=True)),
        "batches of one's own": trained(
            DataLoader(tensors(10), batch_sampler=Uneven([[0, 1, 2, 3], [4, 5], [6, 7], [8, 9]]))
        ),
        "list of batches": trained(
            [(x[None, 0:1].expand(5, 3, 8, 8), y.expand(5)) for x, y in tensors(3)]
        ),
        "compiled": compiled(images(45, **shuffled)),
        "unused parameter": trained(images(32), TwoHeads()),
        "hooks": trained(images(32), recipe=pair, **hooks()),
        "own early stop": trained(images(32), epochs=6, recipe=early, val=images(32), **own_way()),
        "own end": trained(
            images(32),
            epochs=6,
            recipe={**early.to_dict(), "early_stop": 5},
            val=images(32),
            **own_way(),
        ),
        "early stop": trained(
            images(64),
            epochs=6,
            recipe=early,
            val=images(48, batch_size=10),
            checkpoint=folder / f"{world()}.pt",
        ),
    }


def alike(values: dict[str, Any]) -> bool:
    """Return whether all processes hold the same numbers."""
    for value in values.values():
        mine = torch.as_tensor(value, dtype=torch.float64)
        if not torch.equal(sum_across(mine.clone()), mine * world()):
            return False
    return True


def reports_own_loss() -> bool:
    """Whether each process reports the mean loss of its own samples, of which they have 2 and 1."""
    x, y = next(iter(images(3, batch_size=3).plain()))
    net, found = plain_net(), list[float]()
    own = slice(rank(), None, world())
    with torch.no_grad():
        expected = float(nn.functional.cross_entropy(net(x[own]), y[own]))
    fit(net, [(x, y)], epochs=1, recipe=FP32, on_batch=lambda step: found.append(float(step.loss)))
    right = torch.tensor(int(abs(found[0] - expected) < 1e-6))
    return int(sum_across(right)) == world()


def main(folder: Path) -> None:
    results: dict[str, Any] = {"scenarios": scenarios(folder), "world": world()}
    loader = images(45, shuffle=True)
    results["norm alike"] = alike(trained(loader, TwoHeads(norm=True)))
    results["own loss"] = reports_own_loss()
    data = tensors(40)
    own = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, world(), rank()))
    results["own sampler"] = len(trained(own)["losses"])
    results["alike"] = all(alike(values) for values in results["scenarios"].values())
    if is_main():
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
