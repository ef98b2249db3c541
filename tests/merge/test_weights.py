"""Weights that are computed from parameters alone are computed once, and their layers merge."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from shoal.measure import depth
from shoal.merge.loading import load
from shoal.merge.merge import merge_
from shoal.network import capture
from shoal.network.saving import save
from shoal.surgery import linearize_


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (deviation + 1e-5), self.bias, self.stride, 1)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head((x + F.relu(self.conv(x))).mean((2, 3)))


def _pruned(model: Plain) -> None:
    for layer in (model.stem, model.conv, model.head):
        prune.l1_unstructured(layer, "weight", 0.5)
        prune.random_unstructured(layer, "bias", 0.3)
    prune.l1_unstructured(model.norm, "weight", 0.25)


def _standardized(model: Plain) -> None:
    model.stem = Standardized(3, 8, 3)


WAYS: dict[str, Callable[[Plain], object]] = {
    "weight norm": lambda model: parametrizations.weight_norm(model.stem),
    "weight norm of a linear layer": lambda model: parametrizations.weight_norm(model.head),
    "weight norm by hooks": lambda model: old_weight_norm(model.stem),
    "spectral norm": lambda model: parametrizations.spectral_norm(model.stem),
    "spectral norm by hooks": lambda model: old_spectral_norm(model.conv),
    "orthogonal": lambda model: parametrizations.orthogonal(model.head),
    "masks": _pruned,
    "standardized": _standardized,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", ["fold", "always"])
def test_layers_with_computed_weights_become_ordinary_ones(
    way: str, policy: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the hooks are the old way
        WAYS[way](model)
    images = torch.randn(6, 3, 8, 8)
    model(images)
    network = capture(model.eval(), images)
    assert {operation.reason for operation in network.opaque} == {
        "its weight is computed in the forward pass"
    }
    before, layers = network(images), depth(network)
    report = merge_(network, policy=policy)
    assert network.opaque == ()
    assert report.max_rel_error < 1e-5
    torch.testing.assert_close(network(images), before)
    assert depth(network) == layers == 3
    assert set(network.state_dict()) == {
        f"{layer}.{tensor}" for layer in ("stem", "conv", "head") for tensor in ("weight", "bias")
    }
    save(network, tmp_path / "net")
    assert torch.equal(load(tmp_path / "net")(images), network(images))
    assert str(merge_(network, policy=policy)).startswith("0 merged")


def test_a_normed_layer_merges_with_the_layer_after_it() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    network = capture(model, torch.randn(2, 4))
    linearize_(network, ["1"], how="identity")
    expected = network(torch.ones(2, 4))
    assert merge_(network, policy="always").depth_after == 1
    torch.testing.assert_close(network(torch.ones(2, 4)), expected)


def test_the_layers_after_a_normed_embedding_merge() -> None:
    embedding = parametrizations.spectral_norm(nn.Embedding(10, 4))
    words = torch.randint(0, 10, (2, 5))
    network = capture(nn.Sequential(embedding, nn.Linear(4, 8), nn.Linear(8, 3)).eval(), words)
    expected = network(words)
    report = merge_(network, policy="always")
    assert (len(report.merged), report.depth_before, report.depth_after) == (1, 2, 1)
    assert network.opaque == ()
    torch.testing.assert_close(network(words), expected)


def test_a_layer_called_twice_with_a_computed_weight_computes_the_same() -> None:
    normed = parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(normed, nn.ReLU(), normed, nn.ReLU()).eval()
    network = capture(model, torch.randn(2, 4))
    expected = network(torch.ones(2, 4))
    merge_(network, policy="fold")
    torch.testing.assert_close(network(torch.ones(2, 4)), expected)
    assert network.opaque == ()


def test_a_weight_that_the_input_or_chance_decides_stays_computed() -> None:
    class Dynamic(nn.Module):
        def __init__(self, factor: Callable[[Dynamic, Tensor], Tensor]) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.router = nn.Linear(4, 2)
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * self.factor(self, x))

    for factor in (
        lambda model, x: x.mean(),
        lambda model, x: model.router(x).mean(),
        lambda model, x: torch.rand(()) * 0 + 1,
    ):
        network = capture(Dynamic(factor).eval(), torch.randn(2, 4))
        expected = network(torch.ones(2, 4))
        merge_(network, policy="always")
        assert len(network.opaque) == 1
        torch.testing.assert_close(network(torch.ones(2, 4)), expected)
