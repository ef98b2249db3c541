"""The residual of a fit, and the loss with the fit in place, against doing it by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captures import resnet20
from changed import changed
from shoal.errors import ConfigError, DataError, NameNotFoundError
from shoal.importance import score
from shoal.importance.criteria import criterion_for
from shoal.importance.trials import CollapseLoss, FitResidual
from shoal.models import cifar_resnet20
from shoal.network import Network, capture
from shoal.surgery import collapse as collapsing
from shoal.surgery.collapse import collapse_
from shoal.training import evaluate

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet20()


@pytest.fixture(scope="module")
def loader() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(20, 3, 16, 16, generator=generator),
            torch.randint(0, 10, (20,), generator=generator),
        )
        for _ in range(3)
    ]


BLOCKS = [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)]


def test_every_block_has_a_residual_between_0_and_1(network: Network, loader: list[Batch]) -> None:
    scores = score(network, loader, criterion="fit_residual")
    assert list(scores) == BLOCKS
    assert all(0.0 < value < 1.0 for value in scores.values())
    assert scores.samples == 60
    assert scores.details["layer1.0"]["columns"] == 36


@pytest.mark.long
def test_a_block_that_is_one_convolution_has_residual_0(loader: list[Batch]) -> None:
    torch.manual_seed(0)
    model = cifar_resnet20(width=4).eval()
    nn.init.zeros_(model.layer2[1].bn2.weight)
    nn.init.zeros_(model.layer2[1].bn2.bias)
    scores = score(capture(model, torch.randn(2, 3, 16, 16)), loader, criterion="fit_residual")
    assert scores["layer2.1"] < 1e-5
    assert scores.lowest() == ["layer2.1"]


@pytest.mark.parametrize("criterion", ["fit_residual", "collapse_loss"])
def test_blocks_that_can_be_dropped_are_ranked_by_it(
    network: Network, loader: list[Batch], criterion: str
) -> None:
    made = criterion_for(criterion, "block")
    scores = score(network, loader, made)
    removable = [block.name for block in network.blocks if block.removable]
    assert sorted(scores) == sorted(removable)
    assert len(removable) < len(BLOCKS)
    if criterion == "fit_residual":
        whole = score(network, loader, criterion=criterion)
        assert dict(scores) == {name: pytest.approx(whole[name]) for name in removable}


def test_a_larger_kernel_leaves_less(network: Network, loader: list[Batch]) -> None:
    small, large = (
        score(network, loader, criterion="fit_residual", kernel_size=k, names=BLOCKS[:3])
        for k in (1, 3)
    )
    assert list(small) == BLOCKS[:3]
    assert all(large[name] < small[name] for name in BLOCKS[:3])


def test_several_passes_give_what_one_gives(
    network: Network, loader: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = score(network, loader, criterion="fit_residual")
    monkeypatch.setattr(collapsing, "_PASS_BYTES", 1)
    assert dict(score(network, loader, criterion="fit_residual")) == dict(once)


def test_scoring_changes_nothing(network: Network, loader: list[Batch]) -> None:
    x = loader[0][0]
    before, code = network(x), network.code
    score(network, loader, criterion="collapse_loss")
    assert torch.equal(network(x), before)
    assert network.code == code
    assert not network.plan.operations


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_collapse_loss_is_what_collapsing_and_evaluating_gives(
    network: Network, loader: list[Batch], metric: str
) -> None:
    scores = score(
        network, loader, criterion="collapse_loss", metric=metric, keep=None, precision="fp32"
    )
    dense = evaluate(network, loader)
    assert list(scores) == BLOCKS
    for name in ("layer1.0", "layer2.0", "layer3.2"):
        after = evaluate(changed(collapse_, network.copy(), name, loader), loader)
        assert scores.details[name]["loss"] == pytest.approx(after.loss, abs=1e-5)
        assert scores.details[name]["top1"] == pytest.approx(after.top1)
        rise = after.loss - dense.loss if metric == "loss" else dense.top1 - after.top1
        assert scores[name] == pytest.approx(rise, abs=1e-5)


def test_a_screen_judges_the_lowest_residuals_only(network: Network, loader: list[Batch]) -> None:
    residuals = score(network, loader, criterion="fit_residual")
    scores = score(network, loader, criterion="collapse_loss", screen=3)
    assert set(scores) == set(residuals.lowest(3))
    assert all(scores.details[name]["residual"] == residuals[name] for name in scores)


def test_errors(network: Network, loader: list[Batch]) -> None:
    with pytest.raises(NameNotFoundError, match=r"layer1\.9"):
        score(network, loader, criterion="fit_residual", names=["layer1.9"])
    with pytest.raises(ConfigError, match="ridge"):
        FitResidual(ridge=-1.0)
    with pytest.raises(ConfigError, match="metric is 'f1'"):
        CollapseLoss(metric="f1")
    with pytest.raises(ConfigError, match="place is 'site': give one of stretch, block"):
        FitResidual(place="site")
    with pytest.raises(ConfigError, match="screen is 0"):
        CollapseLoss(screen=0)
    plain = capture(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3))
    with pytest.raises(ConfigError, match="no block or stretch"):
        score(plain, [torch.randn(4, 3)], criterion="fit_residual")
    with pytest.raises(DataError, match="no target"):
        score(network, [x for x, _ in loader], criterion="collapse_loss")
