"""The entropy that a batch norm implies, against TLC's figures and against the counted one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shoal
import small_runs
from shoal.errors import ConfigError


def test_the_mean_entropy_of_known_norms() -> None:
    norm = nn.BatchNorm1d(5)
    norm.bias.data = torch.tensor([1.0, 0.0, -1.0, -2.0, 0.5])
    norm.weight.data = torch.tensor([1.0, 1.0, -2.0, 0.5, 0.0])
    net = shoal.capture(nn.Sequential(norm, nn.ReLU()).eval(), torch.randn(4, 5))
    scores = shoal.score(net, [], "norm_entropy")
    assert dict(scores) == pytest.approx({"1": 0.504616}, abs=1e-6)
    assert scores.unit == "bits"
    data = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    counted = shoal.score(net, [data], "entropy")
    assert scores["1"] == pytest.approx(counted["1"], abs=0.01)


def test_only_rectifiers_behind_a_norm_are_scored() -> None:
    net = small_runs.captured().copy()
    assert list(shoal.score(net, [], "norm_entropy")) == ["relu"]
    shoal.linearize_(net, "relu", "identity")
    with pytest.raises(ConfigError, match="no rectifier that is left follows a batch norm"):
        shoal.score(net, [], "norm_entropy")
