"""Merging where several runtimes or batch sizes decide: it pays in the sum, and nowhere costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from shoal.errors import OptionError
from shoal.measure.latency import Latency
from shoal.merge import merge as merging
from shoal.merge.conv_map import ConvMap
from shoal.merge.cut import LatencyCosts, LayerCosts
from shoal.merge.merge import merge_
from shoal.merge.report import MergeReport
from shoal.network import Network, capture


def pair() -> Network:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 8))
    return capture(net.eval(), torch.randn(2, 4))


def price(monkeypatch: pytest.MonkeyPatch, joined: dict[int, float]) -> None:
    """Let each layer cost 1, and both as one what the table says for the batch size."""

    def cost(self: LatencyCosts, found: ConvMap, node: Any) -> float:
        return joined[self.batch] if found.weight.shape[:2] == (8, 4) else 1.0

    monkeypatch.setattr(LatencyCosts, "map_ms", cost)
    monkeypatch.setattr(LayerCosts, "_weights", [1.0] * len(joined))


def forge(monkeypatch: pytest.MonkeyPatch, merged: dict[int, float]) -> None:
    """Let the whole network take 1 ms, and merged what the table says for the batch size."""

    def measure(where: Any, models: Any, inputs: Any, **_: Any) -> list[dict[str, Latency]]:
        times = [{"folded": 1.0, "merged": merged[one.batch]} for one in where]
        return [
            {k: Latency(v, v, v, 6, 1, 1, "cpu", 1, (v,) * 6) for k, v in ms.items()}
            for ms in times
        ]

    monkeypatch.setattr(merging, "measure_in", measure)


@pytest.mark.parametrize(
    ("joined", "depth"),
    [
        ({1: 1.5, 32: 1.5}, 1),
        ({1: 0.1, 32: 2.1}, 2),  # pays in the sum, and is slower in one
        ({1: 1.99, 32: 1.99}, 2),  # within the noise of a measurement
        ({1: 1.0, 32: 2.0}, 1),
        ({1: 0.1}, 1),
    ],
)
def test_layers_are_joined_where_that_pays_in_the_sum_and_costs_nowhere(
    monkeypatch: pytest.MonkeyPatch, joined: dict[int, float], depth: int
) -> None:
    price(monkeypatch, joined)
    forge(monkeypatch, dict.fromkeys(joined, 0.5))
    report = merge_(pair(), batch=list(joined))
    assert report.depth_after == depth
    assert MergeReport.from_dict(report.to_dict()) == report


def test_a_merge_that_is_slower_anywhere_is_undone_and_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    price(monkeypatch, {1: 0.5, 32: 0.5})
    forge(monkeypatch, {1: 0.5, 32: 1.1})
    network = pair()
    report = merge_(network, runtime=["eager"], batch=(1, 32))
    assert (report.depth_after, report.runtime, report.batch) == (2, "eager", (1, 32))
    assert report.kept[-1].reason == "the whole network was measured to be slower with it"
    assert network.plan.operations[-1].options["slower"] == ["eager", [1, 32]]
    done = len(network.plan)
    merge_(network, batch=(1, 32))
    assert len(network.plan) == done


def test_layers_count_by_their_share_of_the_networks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(where: Any, models: Any, inputs: Any, **_: Any) -> list[dict[str, Latency]]:
        times = [1.0, 100.0]
        return [{"": Latency(v, v, v, 1, 1, 1, "cpu", 1, (v,))} for v in times]

    monkeypatch.setattr("shoal.merge.cut.measure_in", measure)
    costs = LayerCosts(pair(), merging.deployments("eager", (1, 32)))
    assert costs._weights == pytest.approx([50.5, 0.505])  # both take 50.5 ms by these


def test_no_runtime_and_no_batch_are_told() -> None:
    with pytest.raises(OptionError, match="batch"):
        merge_(pair(), batch=0)
    with pytest.raises(OptionError, match="runtime"):
        merge_(pair(), runtime=[])
