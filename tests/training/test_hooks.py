from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shoal
from shoal.data.loader import ImageLoader
from shoal.errors import ConfigError, NameNotFoundError, TrainingError
from shoal.training import EpochReport, Recipe, fit

Images = Callable[..., ImageLoader]
PLAIN = Recipe(precision="fp32", lr=0.05, nesterov=False, weight_decay=0.0, schedule="constant")


class Slope(nn.Module):
    """Its output times the input is its loss, so the input is the task's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))
        self.path: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * x


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(x + self.conv2(self.relu1(self.bn1(self.conv1(x)))))


def captured() -> shoal.Network:
    torch.manual_seed(1)
    stem = nn.Conv2d(3, 4, 3, padding=1)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    model = nn.Sequential(stem, Residual(), head)
    return shoal.capture(model, torch.randn(2, 3, 8, 8))


def identity(output: Tensor, _: Tensor) -> Tensor:
    return output.mean()


def layer_folding(network: nn.Module, _: Mapping[str, Any]) -> Tensor:
    return 0.25 * (1 - network.alpha**2).abs()


def clamped(network: nn.Module) -> None:
    network.alpha.clamp_(min=0)
    network.path.append(float(network.alpha))


@pytest.mark.parametrize(
    ("gradients", "expected"),
    [
        ([-3.0] * 4, [0.003, 0.0087015, 0.0168372, 0.0271678]),
        ([3.0] * 4, [0.0, 0.0, 0.0, 0.0]),
        ([3.0] * 3 + [-3.0] * 4, [0.0, 0.0, 0.0, 0.0, 0.0, 0.002203, 0.007187]),
    ],
)
def test_a_slope_moves_as_layer_folding_says(gradients: list[float], expected: list[float]) -> None:
    """Ben Dror et al. 2022: SGD at 1e-3 with momentum 0.9, the penalty 0.25 · |1 - α²|."""
    net = Slope()
    batches = [(torch.full((5, 1), g), torch.zeros(5)) for g in gradients]

    def groups(network: nn.Module) -> Iterable[dict[str, Any]]:
        plain = {"optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "constant": True}
        return [{"params": [network.alpha], **plain}]

    report = fit(
        net,
        batches,
        epochs=1,
        recipe="easier_transfer",  # Adam at a tenth of the rate: the group has its own
        loss=identity,
        penalty=layer_folding,
        groups=groups,
        after_step=clamped,
    )
    torch.testing.assert_close(net.path, expected, atol=2e-6, rtol=1e-4)
    before = [0.0, *net.path[:-1]]
    penalties = [0.25 * (1 - alpha**2) for alpha in before]
    losses = [alpha * g for alpha, g in zip(before, gradients, strict=True)]
    assert report.epochs[0].penalty == pytest.approx(sum(penalties) / len(penalties))
    assert report.epochs[0].loss == pytest.approx(sum(losses) / len(losses), abs=1e-9)


def spread(_: nn.Module, values: Mapping[str, Any]) -> Tensor:
    """Ask for one value of each kind; all means over samples."""
    before, after = values["1"]
    return 0.1 * values["1.relu1"].square().mean() + 0.2 * (after - before).square().mean()


def faster_head(network: nn.Module) -> list[dict[str, Any]]:
    head = network.get_submodule("2.2")
    return [{"params": head.parameters(), "lr": 0.2, "momentum": 0.5, "weight_decay": 0.01}]


def masked(network: nn.Module) -> None:
    network.get_parameter("1.conv1.weight")[0].zero_()


HOOKS: dict[str, Any] = {
    "penalty": spread, "at": ("1.relu1", "1"), "groups": faster_head, "after_step": masked,
}  # fmt: skip


def test_a_fit_with_hooks_equals_a_loop_by_hand(images: Images) -> None:
    net, twin = captured(), captured()
    fit(net, images(), epochs=2, recipe=PLAIN, **HOOKS)

    seen: dict[str, Tensor] = {}
    block = (
        twin.get_submodule("1.relu1"),
        twin.get_submodule("1.conv1"),
        twin.get_submodule("1.relu2"),
    )
    block[0].register_forward_hook(lambda m, args, out: seen.update(site=args[0]))
    block[1].register_forward_hook(lambda m, args, out: seen.update(start=args[0]))
    block[2].register_forward_hook(lambda m, args, out: seen.update(end=args[0]))
    head = list(twin.get_submodule("2.2").parameters())
    rest = [p for p in twin.parameters() if all(p is not h for h in head)]
    optimizer = torch.optim.SGD(
        [{"params": rest}, {"params": head, "lr": 0.2, "momentum": 0.5, "weight_decay": 0.01}],
        lr=0.05,
        momentum=0.9,
    )
    twin.train()
    for x, y in [*images(), *images()]:
        optimizer.zero_grad()
        loss = F.cross_entropy(twin(x.contiguous(memory_format=torch.channels_last)), y)
        far = (seen["end"] - seen["start"]).square().mean()
        (loss + 0.1 * seen["site"].square().mean() + 0.2 * far).backward()
        optimizer.step()
        with torch.no_grad():
            masked(twin)
    for (name, own), (_, other) in zip(
        net.state_dict().items(), twin.state_dict().items(), strict=True
    ):
        torch.testing.assert_close(own, other, atol=2e-6, rtol=2e-5, msg=name)
    assert net.get_parameter("1.conv1.weight")[0].eq(0).all()


def test_a_penalty_counts_once_per_step_with_accumulation(images: Images) -> None:
    def of_weights(network: nn.Module, _: Mapping[str, Any]) -> Tensor:
        return 3.0 * sum(p.square().sum() for p in network.parameters())

    def quiet(output: Tensor, _: Tensor) -> Tensor:
        return 0.0 * output.mean()

    ends = []
    for size, accumulate in ((48, 1), (12, 4), (20, 3)):  # the last batch of 20s has 8
        net = Slope()
        net.alpha.data.fill_(1.0)
        recipe = Recipe(**{**PLAIN.to_dict(), "accumulate": accumulate})
        batches = [(torch.ones(n, 1), torch.zeros(n)) for n in chunks(48, size)]
        report = fit(net, batches, epochs=2, recipe=recipe, loss=quiet, penalty=of_weights)
        ends.append([net.alpha.item(), *(e.penalty for e in report.epochs)])
    assert ends[0] == pytest.approx(ends[1])
    assert ends[0] == pytest.approx(ends[2])
    assert ends[0][1] == pytest.approx(3.0)


def chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def test_values_are_in_the_precision_of_the_forward_pass(images: Images) -> None:
    def look(_: nn.Module, values: Mapping[str, Any]) -> Tensor:
        kinds.add((values["1"][1].dtype, values["1"][0].requires_grad))
        return values["1"][1].mean()

    kinds: set[tuple[torch.dtype, bool]] = set()
    recipe = Recipe(**{**PLAIN.to_dict(), "precision": "bf16"})
    fit(captured(), images(), epochs=1, recipe=recipe, penalty=look, at=["1"])
    assert kinds == {(torch.bfloat16, True)}


def test_a_stretch_gives_what_goes_in_and_comes_out(images: Images) -> None:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), *head)
    net = shoal.capture(model, torch.randn(2, 3, 8, 8))
    (name,) = (stretch.name for stretch in net.stretches if "..2" in stretch.name)

    def look(network: nn.Module, values: Mapping[str, Any]) -> Tensor:
        before, after = values[name]
        inner = [network.get_submodule(path) for path in "012"]
        torch.testing.assert_close(after, inner[2](inner[1](inner[0](before))))
        return after.mean()

    fit(net, images(), epochs=1, recipe=PLAIN, penalty=look, at=[name])


class Parallel(nn.Module):
    """Two branches beside one another, each of which can be dropped alone."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.g = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.f(x) + self.g(x))


def test_a_block_gives_what_is_left_without_it_and_what_comes_out(images: Images) -> None:
    """The two differ by the block's branch alone, also beside another branch."""
    net = shoal.capture(Parallel(), torch.randn(2, 3, 8, 8))
    assert [block.name for block in net.blocks if block.removable] == ["f", "g"]
    branches: dict[str, Tensor] = {}
    for name in "fg":
        last = net.get_submodule(f"{name}.1")
        last.register_forward_hook(lambda m, args, out, name=name: branches.update({name: out}))

    def look(network: nn.Module, values: Mapping[str, Any]) -> Tensor:
        for name in "fg":
            before, after = values[name]
            torch.testing.assert_close(after - before, branches[name], atol=1e-6, rtol=1e-5)
        return values["g"][1].mean()

    fit(net, images(16), epochs=1, recipe=PLAIN, penalty=look, at=["f", "g"])


@pytest.mark.parametrize("epoch", [1, 2])
def test_resuming_with_hooks_ends_like_an_uninterrupted_fit(
    augmented: ImageLoader, tmp_path: Path, epoch: int
) -> None:
    def slow_sgd(network: nn.Module) -> list[dict[str, Any]]:
        last = network.get_submodule("1.conv2")
        return [{"params": [last.weight], "optimizer": "sgd", "momentum": 0.9, "lr": 0.01}]

    def noisy(network: nn.Module, values: Mapping[str, Any]) -> Tensor:
        return (values["1.relu1"] * torch.randn(values["1.relu1"].shape)).mean()

    def stop(report: EpochReport) -> None:
        if report.epoch == epoch:
            raise KeyboardInterrupt

    hooks: dict[str, Any] = {**HOOKS, "penalty": noisy, "groups": slow_sgd}
    hooks |= {"epochs": 3, "recipe": Recipe(optimizer="adamw", lr=0.01)}
    whole, parted = captured(), captured()
    expected = fit(whole, augmented, **hooks)
    path = tmp_path / "fit.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(parted, augmented, checkpoint=path, on_epoch=stop, **hooks)
    parted = captured()
    report = fit(parted, augmented, checkpoint=path, **hooks)
    assert report.resumed_from == epoch
    for own, other in zip(whole.state_dict().values(), parted.state_dict().values(), strict=True):
        assert torch.equal(own, other)
    assert [e.penalty for e in report.epochs] == [e.penalty for e in expected.epochs]
    del hooks["after_step"]
    assert "another fit" in fit(captured(), augmented, checkpoint=path, **hooks).notes[0]


def test_a_groups_rate_follows_the_schedule_from_its_own_peak(images: Images) -> None:
    rates: list[list[float]] = []
    net = captured()
    recipe = Recipe(**{**PLAIN.to_dict(), "schedule": "step", "milestones": (0.5,)})

    def groups(network: nn.Module) -> list[dict[str, Any]]:
        head = network.get_submodule("2.2")
        return [
            {"params": [head.weight], "lr": 1.0, "momentum": 0},
            {"params": [head.bias], "lr": 2.0, "momentum": 0, "constant": True},
        ]

    def gradient_is_one(network: nn.Module, _: Mapping[str, Any]) -> Tensor:
        head = network.get_submodule("2.2")
        rates.append([head.weight.mean().item(), head.bias.mean().item()])
        return head.weight.sum() + head.bias.sum()

    def quiet(output: Tensor, _: Tensor) -> Tensor:
        return 0.0 * output.mean()

    fit(net, images(), epochs=2, recipe=recipe, loss=quiet, penalty=gradient_is_one, groups=groups)
    weight, bias = torch.tensor(rates, dtype=torch.float64).diff(dim=0).T
    torch.testing.assert_close(
        -weight, torch.tensor([1.0, 1, 1, 0.1, 0.1]).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(-bias, torch.full((5,), 2.0).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("hooks", "error", "words"),
    [
        ({"at": ["1.relu1"]}, ConfigError, "no penalty"),
        ({"at": ["1.relu3"], "penalty": spread}, NameNotFoundError, "1.relu1"),
        ({"penalty": lambda n, v: torch.ones(2)}, TrainingError, r"shape \[2\]"),
        ({"penalty": lambda n, v: None}, TrainingError, "one element"),
        ({"penalty": lambda n, v: torch.tensor(torch.nan)}, TrainingError, "penalty is nan"),
        ({"groups": lambda n: [{"lr": 1.0}]}, ConfigError, "params"),
        ({"groups": lambda n: [{"params": n.parameters(), "rate": 1}]}, NameNotFoundError, "rate"),
        ({"groups": lambda n: [{"params": n.parameters(), "lr": -1}]}, ConfigError, "lr is -1"),
        ({"groups": lambda n: _twice(n)}, ConfigError, "in two groups"),
        ({"groups": lambda n: [{"params": [nn.Parameter(torch.ones(1))]}]}, ConfigError, "not the"),
    ],
)
def test_a_wrong_hook_is_one_line_and_leaves_the_network(
    images: Images, hooks: dict[str, Any], error: type[Exception], words: str
) -> None:
    net = captured()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(error, match=words) as caught:
        fit(net, images(), epochs=1, recipe=PLAIN, **hooks)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def _twice(network: nn.Module) -> list[dict[str, Any]]:
    return [{"params": list(network.parameters())}, {"params": [network.get_parameter("0.bias")]}]


def test_places_are_of_captured_networks(images: Images) -> None:
    with pytest.raises(ConfigError, match=r"shoal\.capture"):
        fit(Residual(), images(), epochs=1, penalty=spread, at=["1"])


def test_a_hook_ends_the_fit_and_what_hooks_remember_survives_an_interruption(
    tmp_path: Path,
) -> None:
    """The rate of the penalty doubles each epoch until the weights are small enough."""
    batches = [(torch.ones(4, 2), torch.zeros(4))] * 3

    def shrunk(checkpoint: Path, most: int, **given: Any) -> tuple[Tensor, dict[str, Any], int]:
        torch.manual_seed(0)
        net, memory = nn.Linear(2, 1), {"rate": 0.01}

        def penalty(network: nn.Module, _: Mapping[str, Any]) -> Tensor:
            return memory["rate"] * network.weight.square().sum()

        def after_epoch(network: nn.Module) -> bool:
            memory["rate"] *= 2
            return memory["rate"] >= most

        report = fit(
            net, batches, epochs=20, recipe=PLAIN, loss=lambda output, _: 0 * output.mean(),
            checkpoint=checkpoint, penalty=penalty, after_epoch=after_epoch, memory=memory, **given,
        )  # fmt: skip
        assert report.stopped_early
        return net.weight.detach(), memory, len(report.epochs)

    def stop(report: EpochReport) -> None:
        if report.epoch == 3:
            raise KeyboardInterrupt

    weight, memory, epochs = shrunk(tmp_path / "whole", 1)
    assert (memory, epochs) == ({"rate": 1.28}, 7)
    with pytest.raises(KeyboardInterrupt):
        shrunk(tmp_path / "part", 1, on_epoch=stop)
    for _ in range(2):  # it goes on, and then finds all done
        again = shrunk(tmp_path / "part", 1)
        assert torch.equal(again[0], weight)
        assert again[1:] == (memory, epochs)


def test_hooks_may_leave_numbers_of_numpy(tmp_path: Path) -> None:
    data = [(torch.ones(4, 2), torch.ones(4, 1))]

    def trained(after: Callable[[EpochReport], None] | None = None) -> tuple[Any, ...]:
        net, memory = nn.Linear(2, 1), {"rates": [np.float32(0.5)], "best": {}}

        def after_epoch(network: nn.Module) -> Any:
            memory["best"][np.str_("loss")] = np.float64(len(memory["rates"]))
            memory["rates"].append(np.float32(0.25))
            return np.bool_(len(memory["rates"]) > 3)

        report = fit(
            net, data, epochs=9, loss=identity, on_epoch=after, first_epoch=np.int64(0),
            checkpoint=tmp_path / "c", after_epoch=after_epoch, memory=memory,
            groups=lambda network: [{"params": network.parameters(), "lr": np.float32(0.1)}],
        )  # fmt: skip
        return report, memory

    def stop(report: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(stop)
    report, memory = trained()
    assert (report.resumed_from, report.notes, len(report.epochs)) == (1, (), 3)
    assert memory == {"rates": [0.5, 0.25, 0.25, 0.25], "best": {"loss": 3.0}}
    assert trained()[0].resumed_from == 3  # and it has ended
