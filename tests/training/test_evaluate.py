from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from shoal.data.loader import ImageLoader
from shoal.errors import ConfigError, DataError
from shoal.training import evaluate


def test_it_is_a_direct_count(
    norm_net: Callable[[], nn.Module], images: Callable[..., ImageLoader]
) -> None:
    net, loader = norm_net(), images(45)
    batches = list(loader)
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    with torch.no_grad():
        logits = net.eval()(x)
    found = evaluate(net.train(), loader)
    assert found.samples == 45
    assert found.correct == int((logits.argmax(1) == y).sum())
    assert found.top1 == pytest.approx(100 * found.correct / 45)
    assert found.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert found.to_dict()["samples"] == 45


def test_an_augmenting_loader_is_read_plainly(
    plain_net: Callable[[], nn.Module], images: Callable[..., ImageLoader], augmented: ImageLoader
) -> None:
    assert evaluate(plain_net(), augmented) == evaluate(plain_net(), images())


def test_the_network_is_left_as_it_came(
    norm_net: Callable[[], nn.Module], images: Callable[..., ImageLoader]
) -> None:
    net = norm_net().train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, images())
    assert [m.training for m in net] == [True, False, *[True] * 6]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_callers_random_state_is_untouched(plain_net: Callable[[], nn.Module]) -> None:
    net, data = plain_net(), TensorDataset(torch.randn(8, 3, 8, 8), torch.zeros(8).long())
    before = torch.get_rng_state()
    evaluate(net, DataLoader(data, batch_size=4, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_limit_takes_the_first_samples(
    plain_net: Callable[[], nn.Module], images: Callable[..., ImageLoader]
) -> None:
    net, loader = plain_net(), images()
    x, y = next(iter(images(batch_size=20)))
    assert evaluate(net, loader, limit=20).correct == evaluate(net, [(x, y)]).correct
    assert evaluate(net, loader, limit=20).samples == 20
    assert evaluate(net, loader, limit=9999).samples == 48
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate(net, loader, limit=0)


def test_dict_batches_and_dict_outputs_work() -> None:
    class Model(nn.Module):
        def forward(self, pixels: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
            return {"loss": None, "logits": pixels * mask}

    batch = {"pixels": torch.eye(3), "mask": torch.ones(3, 1), "labels": torch.tensor([0, 1, 0])}
    assert evaluate(Model(), [batch]).correct == 2


def test_bf16_is_near_fp32(
    plain_net: Callable[[], nn.Module], images: Callable[..., ImageLoader]
) -> None:
    full, half = (evaluate(plain_net(), images(), precision=p) for p in ("fp32", "bf16"))
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert half.loss != full.loss


def test_bad_data_is_named_in_one_line(plain_net: Callable[[], nn.Module]) -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(plain_net(), [])
    wrong = [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 7]))]
    with pytest.raises(DataError, match="label 7 is outside the network's 4 outputs"):
        evaluate(plain_net(), wrong)
    with pytest.raises(DataError, match="no target"):
        evaluate(plain_net(), [torch.zeros(2, 3, 8, 8)])


def test_a_loader_of_a_part_of_the_samples_is_refused(plain_net: Callable[[], nn.Module]) -> None:
    """What is shared among processes twice would be an accuracy on a quarter of the data."""
    data = TensorDataset(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)
    half = DistributedSampler(data, num_replicas=2, rank=0)
    for loader in (
        DataLoader(data, batch_size=4, sampler=half),
        DataLoader(data, batch_sampler=BatchSampler(half, 4, drop_last=False)),
    ):
        with pytest.raises(DataError, match="DistributedSampler: give a loader of all") as caught:
            evaluate(plain_net(), loader)
        assert "\n" not in str(caught.value)
    whole = DistributedSampler(data, num_replicas=1, rank=0)
    assert evaluate(plain_net(), DataLoader(data, batch_size=4, sampler=whole)).samples == 8


def test_fp16_is_refused_on_the_cpu(plain_net: Callable[[], nn.Module]) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        evaluate(plain_net(), [], precision="fp16")
