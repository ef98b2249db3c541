from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from shoal.data.loader import ImageLoader
from shoal.errors import ConfigError, DataError, OptionError, TrainingError
from shoal.network import capture
from shoal.training import BatchReport, EpochReport, Recipe, evaluate, fit, recipes

Net = Callable[[], nn.Module]
Images = Callable[..., ImageLoader]
FP32 = Recipe(precision="fp32", lr=0.05)


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    norm_net: Net, augmented: ImageLoader
) -> None:
    ends = []
    for call, seed in enumerate((0, 0, 1)):
        net = norm_net()
        torch.manual_seed(call)  # the global state must not matter
        fit(net, augmented, epochs=2, seed=seed)
        ends.append(weights(net))
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_a_seed_of_numpy_is_that_number(plain_net: Net, augmented: ImageLoader) -> None:
    ends = []
    for seed in (7, np.int64(7)):
        net = plain_net()
        fit(net, augmented, epochs=1, seed=seed)  # type: ignore[arg-type]
        ends.append(weights(net))
    assert same(*ends)


def test_it_learns_and_reports(plain_net: Net, images: Images) -> None:
    net = plain_net()
    seen: list[EpochReport] = []
    steps: list[BatchReport] = []
    report = fit(
        net,
        images(),
        epochs=3,
        recipe=FP32,
        val=images(),
        on_epoch=seen.append,
        on_batch=steps.append,
    )
    assert report.epochs == tuple(seen)
    assert [e.epoch for e in seen] == [1, 2, 3]
    assert seen[-1].loss < seen[0].loss
    assert seen[0].lr > seen[1].lr > seen[2].lr
    assert seen[-1].val_quality == evaluate(net, images()).top1
    assert report.seconds == pytest.approx(sum(e.seconds for e in seen))
    assert (report.precision, report.device, report.resumed_from) == ("fp32", "cpu", None)
    assert not report.stopped_early
    assert [(s.epoch, s.step, s.steps) for s in steps[2:5]] == [(1, 3, 3), (2, 1, 3), (2, 2, 3)]
    assert report.to_dict()["epochs"][0]["epoch"] == 1


def test_the_network_comes_back_bare_in_fp32_with_its_flags(norm_net: Net, images: Images) -> None:
    net = norm_net().train()
    net[1].eval()
    classes = [type(m) for m in net.modules()]
    fit(net, images(), epochs=1, recipe=Recipe(precision="bf16"))
    assert [type(m) for m in net.modules()] == classes
    assert [m.training for m in net] == [True, False, *[True] * 6]
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert all(p.grad is None for p in net.parameters())
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_callers_random_state_is_untouched(norm_net: Net) -> None:
    data = TensorDataset(torch.randn(20, 3, 8, 8), torch.randint(0, 4, (20,)))
    generator = torch.Generator().manual_seed(9)
    loader = DataLoader(data, batch_size=5, shuffle=True, generator=generator)
    net = norm_net()
    before = random.getstate(), torch.get_rng_state(), generator.get_state()
    numpy = np.random.get_state()[1].tolist()
    fit(net, loader, epochs=1)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(generator.get_state(), before[2])
    assert np.random.get_state()[1].tolist() == numpy


def test_a_users_loader_gives_the_same_bits_twice(norm_net: Net) -> None:
    data = TensorDataset(torch.randn(20, 3, 8, 8), torch.randint(0, 4, (20,)))
    loader = DataLoader(data, batch_size=5, shuffle=True)
    ends = []
    for call in range(2):
        net = norm_net()
        torch.manual_seed(call)
        fit(net, loader, epochs=2)
        ends.append(weights(net))
    assert same(*ends)
    assert loader.sampler.generator is None


def test_two_half_batches_accumulated_are_one_batch(plain_net: Net, images: Images) -> None:
    one, two = plain_net(), plain_net()
    fit(one, images(40), epochs=2, recipe=FP32)
    fit(
        two,
        images(40, batch_size=8),
        epochs=2,
        recipe=Recipe(**{**FP32.to_dict(), "accumulate": 2}),
    )
    assert distance(weights(one), weights(two)) < 1e-6


def test_a_perfect_teacher_teaches_nothing(plain_net: Net, images: Images) -> None:
    net = plain_net()
    teacher = copy.deepcopy(net).train()
    before = weights(net)
    recipe = Recipe(precision="fp32", distill=1.0, weight_decay=0.0)
    report = fit(net, images(), epochs=1, recipe=recipe, teacher=teacher)
    assert distance(before, weights(net)) < 1e-6
    assert report.epochs[0].loss == pytest.approx(0, abs=1e-6)
    assert teacher.training


def test_distillation_draws_the_student_to_the_teacher(plain_net: Net, images: Images) -> None:
    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    net = plain_net()
    recipe = Recipe(precision="fp32", distill=0.5)
    report = fit(net, images(), epochs=4, recipe=recipe, teacher=teacher)
    assert report.epochs[-1].loss < report.epochs[0].loss


def test_distillation_softens_what_a_users_loss_gets_in_a_dict(
    plain_net: Net, images: Images
) -> None:
    """The divergence is of the same logits, whatever the network returns them in."""

    class Named(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x)}

    def loss(output: Any, target: Tensor) -> Tensor:
        logits = output if isinstance(output, Tensor) else output["logits"]
        return nn.functional.cross_entropy(logits, target)

    torch.manual_seed(5)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    recipe = Recipe(precision="fp32", distill=0.5, temperature=8.0)
    bare, inner = plain_net(), plain_net()
    first = fit(bare, images(), epochs=1, recipe=recipe, teacher=teacher, loss=loss)
    second = fit(Named(inner), images(), epochs=1, recipe=recipe, teacher=Named(teacher), loss=loss)
    assert second.epochs[0].loss == pytest.approx(first.epochs[0].loss, rel=1e-6)
    assert distance(weights(bare), weights(inner)) < 1e-6


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_users_loss_replaces_cross_entropy(
    plain_net: Net, images: Images, per_sample: bool
) -> None:
    reduction = "none" if per_sample else "mean"

    def loss(output: Any, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction=reduction)

    one, two = plain_net(), plain_net()
    fit(one, images(40), epochs=1, recipe=FP32)
    fit(two, images(40), epochs=1, recipe=FP32, loss=loss)
    assert distance(weights(one), weights(two)) < 1e-6


def test_a_regression_has_a_loss_and_no_accuracy() -> None:
    net = nn.Linear(3, 1)
    batches = [(torch.randn(4, 3), torch.randn(4, 1, 1))] * 2
    report = fit(
        net, batches, epochs=1, recipe=FP32, loss=lambda o, t: ((o - t[..., 0]) ** 2).mean()
    )
    assert report.epochs[0].train_hits is None
    with pytest.raises(TrainingError, match="the mean over the batch"):
        fit(net, batches, epochs=1, loss=lambda o, t: (o - t) ** 2)


def test_soft_targets_and_clipping_work(plain_net: Net) -> None:
    soft = torch.full((8, 4), 0.25)
    report = fit(
        plain_net(), [(torch.randn(8, 3, 8, 8), soft)], epochs=1, recipe=Recipe(clip_norm=1e-9)
    )
    assert report.epochs[0].train_hits is not None


def test_a_loss_that_is_not_finite_gives_the_weights_back(norm_net: Net, images: Images) -> None:
    net = norm_net()
    before = weights(net)
    good = list(images())
    bad = [*good[:2], (torch.full((16, 3, 8, 8), float("nan")), good[0][1])]
    with pytest.raises(
        TrainingError, match=r"epoch 1, step 3 of 3, as sample 0 of batch 2 .* holds NaN"
    ) as caught:
        fit(net, bad, epochs=2)
    assert "\n" not in str(caught.value)
    assert same(before, weights(net))
    assert all(m.training for m in net.modules())


def test_a_rate_that_diverges_is_noticed(plain_net: Net, images: Images) -> None:
    net = plain_net()
    before = weights(net)
    with pytest.raises(TrainingError, match="lower learning rate"):
        fit(net, images(), epochs=20, recipe=Recipe(lr=1e8, precision="fp32", schedule="constant"))
    assert same(before, weights(net))


def test_weights_that_burst_in_the_last_step_are_noticed(plain_net: Net, images: Images) -> None:
    net = plain_net()
    before = weights(net)
    recipe = Recipe(lr=1e38, precision="fp32")
    with pytest.raises(TrainingError, match="not finite after epoch 1"):
        fit(net, images(16), epochs=1, recipe=recipe, loss=lambda o, t: o[:, 0].mean() * 1e3)
    assert same(before, weights(net))


def test_a_last_batch_of_one_is_skipped_before_batch_norm(norm_net: Net, images: Images) -> None:
    assert fit(norm_net(), images(33), epochs=2).skipped_batches == 2


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize(("side", "skipped"), [(8, 0), (1, 1)])
def test_a_last_batch_of_one_is_left_out_only_where_a_norm_would_see_one_value(
    side: int, skipped: int, capturing: bool
) -> None:
    data = [(torch.randn(4, 3, side, side), torch.arange(4)), (torch.randn(1, 3, side, side),
            torch.tensor([2]))]  # fmt: skip
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(6, 4))  # fmt: skip
    net = capture(net, data[0][0]).train() if capturing else net
    counted = net.get_submodule("1").num_batches_tracked
    drawn = torch.get_rng_state()
    assert fit(net, data, epochs=1).skipped_batches == skipped
    assert int(counted) == 2 - skipped
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_frozen_norm_needs_no_second_sample(norm_net: Net, images: Images) -> None:
    net = norm_net()
    net[6].eval()
    assert fit(net, images(33), epochs=1).skipped_batches == 0


def test_a_norm_that_trains_alone_leaves_the_last_sample_out() -> None:
    class Aside(nn.Module):
        """Has a branch that takes part in training alone, and a norm that is called twice."""

        def __init__(self, branch: bool) -> None:
            super().__init__()
            self.conv, self.norm, self.aside = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), None
            if branch:
                self.aside = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(input=self.conv(x))
            if self.aside is None:
                x = self.norm(x.mean((2, 3), keepdim=True))
            elif self.training:
                x = self.aside(x.mean((2, 3), keepdim=True))
            return x.mean((2, 3))

    data = [(torch.randn(n, 3, 4, 4), torch.arange(n)) for n in (4, 1)]
    for branch in (True, False):
        assert fit(Aside(branch), data, epochs=1).skipped_batches == 1


def test_what_was_in_eval_mode_by_itself_stays_in_it(norm_net: Net, images: Images) -> None:
    net = norm_net()
    net[1].eval()  # a frozen norm
    before = {name: value.clone() for name, value in net[1].named_buffers()}
    fit(net, images(), epochs=2, val=images())
    assert all(torch.equal(value, before[name]) for name, value in net[1].named_buffers())
    assert int(net[6].num_batches_tracked) == 6
    assert [module.training for module in net] == [True, False, *[True] * 6]


def test_a_network_in_eval_mode_trains_whole(norm_net: Net, images: Images) -> None:
    net = norm_net().eval()
    fit(net, images(), epochs=1)
    assert int(net[1].num_batches_tracked) == 3
    assert not any(module.training for module in net.modules())


def test_a_last_batch_of_one_trains_a_network_without(plain_net: Net, images: Images) -> None:
    assert fit(plain_net(), images(33), epochs=1).skipped_batches == 0


def test_batches_of_one_before_batch_norm_are_explained(norm_net: Net, images: Images) -> None:
    with pytest.raises(TrainingError, match="larger batch_size"):
        fit(norm_net(), images(3, batch_size=1), epochs=1)


def test_a_fit_that_counts_on_sees_other_batches(plain_net: Net, images: Images) -> None:
    def fitted(**options: Any) -> dict[str, Tensor]:
        net = plain_net()
        fit(net, images(augment="flip_crop"), recipe=FP32, **options)
        return weights(net)

    assert not same(fitted(epochs=1), fitted(epochs=1, first_epoch=1))
    assert same(fitted(epochs=1, first_epoch=1), fitted(epochs=1, first_epoch=1))


def test_early_stopping_restores_the_best_epoch(plain_net: Net, images: Images) -> None:
    net = plain_net()
    kept: list[dict[str, Tensor]] = []
    # A validation set of the opposite labels: training can only make it worse.
    val = [(x, (y + 1) % 4) for x, y in images(64)]
    recipe = Recipe(precision="fp32", lr=0.3, early_stop=2)
    report = fit(
        net,
        images(64),
        epochs=30,
        recipe=recipe,
        val=val,
        on_epoch=lambda _: kept.append(weights(net)),
    )
    assert report.stopped_early
    assert report.best_epoch == len(report.epochs) - 2
    assert same(weights(net), kept[report.best_epoch - 1])
    best = max(e.val_quality or 0.0 for e in report.epochs)
    assert evaluate(net, val).top1 == best


def test_no_epochs_change_nothing(plain_net: Net, images: Images) -> None:
    net = plain_net()
    before = weights(net)
    assert fit(net, images(), epochs=0).epochs == ()
    assert same(before, weights(net))


def test_one_dimensional_parameters_do_not_decay(norm_net: Net, images: Images) -> None:
    net = norm_net()
    before = {name: value.clone() for name, value in net.named_parameters()}
    recipe = Recipe(precision="fp32", weight_decay=0.5)
    fit(net, images(), epochs=1, recipe=recipe, loss=lambda output, _: output.sum() * 0)
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) == (value.ndim == 1)
        assert value.ndim == 1 or value.norm() < before[name].norm()


def test_options_that_do_not_go_together_are_refused(plain_net: Net, images: Images) -> None:
    net = plain_net()
    with pytest.raises(ConfigError, match="CUDA"):
        fit(net, images(), epochs=1, recipe=Recipe(precision="fp16"), device="cpu")
    with pytest.raises(ConfigError, match="validation"):
        fit(net, images(), epochs=1, recipe=Recipe(early_stop=1))
    with pytest.raises(ConfigError, match="teacher"):
        fit(net, images(), epochs=1, recipe=Recipe(distill=0.5))
    with pytest.raises(ConfigError, match="distill"):
        fit(net, images(), epochs=1, teacher=plain_net())
    with pytest.raises(ConfigError, match="copy"):
        fit(net, images(), epochs=1, teacher=net, recipe=Recipe(distill=0.5))
    with pytest.raises(ConfigError, match="epochs"):
        fit(net, images(), epochs=-1)
    with pytest.raises(OptionError, match=r"seed is 0\.5: give a whole number"):
        fit(net, images(), epochs=1, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="device"):
        fit(net, images(), epochs=1, device="gpu")
    with pytest.raises(TrainingError, match=r"network\.float"):
        fit(plain_net().bfloat16(), images(), epochs=1)


def test_a_device_that_is_not_here_is_one_line(plain_net: Net, images: Images) -> None:
    wanted = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"there is no device '{wanted}' here") as caught:
        fit(plain_net(), images(), epochs=1, device=wanted)
    assert "\n" not in str(caught.value)


def test_bad_loaders_are_refused(plain_net: Net) -> None:
    with pytest.raises(DataError, match="empty"):
        fit(plain_net(), [], epochs=1)
    with pytest.raises(DataError, match="no length"):
        fit(plain_net(), iter([]), epochs=1)
    with pytest.raises(DataError, match="label 9 is outside"):
        fit(plain_net(), [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 9]))], epochs=1)


@pytest.mark.parametrize("name", recipes.names())
def test_every_named_recipe_trains(name: str, norm_net: Net, images: Images) -> None:
    teacher = norm_net() if recipes[name].distill else None
    report = fit(norm_net(), images(), epochs=2, recipe=name, teacher=teacher)
    assert len(report.epochs) == 2


def test_an_accelerator_gives_device_and_precision(plain_net: Net, images: Images) -> None:
    class Stand:
        device = torch.device("cpu")
        mixed_precision = "bf16"
        distributed_type = "NO"

    assert fit(plain_net(), images(), epochs=1, accelerator=Stand()).precision == "bf16"
    Stand.distributed_type = "FSDP"
    with pytest.raises(ConfigError, match="FSDP"):
        fit(plain_net(), images(), epochs=1, accelerator=Stand())
