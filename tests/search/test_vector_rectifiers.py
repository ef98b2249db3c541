"""A rectifier of one number for each sample, at a network's end, is no site: it has no channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shoal


class Positive(nn.Module):
    """The usual network that predicts a positive number."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.last(self.hidden(x).relu())[:, 0])


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(n, 4), torch.rand(n)) for n in (8, 5)]


def test_it_is_no_site() -> None:
    network = shoal.capture(Positive().eval(), torch.randn(3, 4))
    assert [site.kind for site in network.sites] == ["relu"]
    assert list(shoal.score(network, [torch.randn(8, 4), torch.randn(5, 4)])) == ["relu"]


@pytest.mark.parametrize("method", ["shoal", "easier"])
def test_the_search_goes_round_it(method: str) -> None:
    data: Any = batches()
    result = shoal.compress(
        Positive(), data, data, method, max_drop=1e6, task="regress", latency_batch=8
    )
    with torch.no_grad():
        assert float(result.merged(data[0][0]).min()) > 0.0  # it is still there
    assert result.model.sites_left + result.removed == 1
