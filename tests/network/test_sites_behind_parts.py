"""Rectifiers of what a call gives among several tensors are sites like all others."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shoal
from shoal.models import load_model


class Parts(nn.Module):
    """Reads parts of what a call gives."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.lstm = how, nn.LSTM(6, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "chunk":
            first, second = x.chunk(2, -1)
        elif self.how == "split":
            first, second = x.split([2, 4], -1)
            return torch.cat([F.relu(first), F.gelu(second)], -1)
        elif self.how == "unbind":
            first, second, *_ = x.unbind(1)
        elif self.how == "max":
            first = second = x.max(2)[0]
        else:
            found, _ = self.lstm(x)
            first = second = found
        return F.relu(first) * F.gelu(second)


@pytest.mark.parametrize("how", ["chunk", "split", "unbind", "max", "lstm"])
def test_rectifiers_behind_a_call_with_several_outputs_are_sites(how: str) -> None:
    network = shoal.capture(Parts(how).eval(), torch.randn(2, 5, 6))
    assert [site.kind for site in network.sites] == ["relu", "gelu"]


@pytest.mark.parametrize(
    ("name", "sites"), [("torchvision:shufflenet_v2_x0_5", 37), ("timm:res2net50_26w_4s", 81)]
)
def test_networks_that_split_their_channels_keep_their_sites(name: str, sites: int) -> None:
    model = load_model(name).eval()
    network = shoal.capture(model, torch.randn(2, 3, 64, 64))
    written = sum(isinstance(module, nn.ReLU) for module in model.modules())
    assert written <= sites
    assert len(network.sites) == sites
