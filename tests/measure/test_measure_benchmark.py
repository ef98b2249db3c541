"""The benchmark of a network beside a baseline."""

from __future__ import annotations

import json

import pytest
import torch
from torch import fx, nn

from shoal.errors import ConfigError
from shoal.measure import benchmark
from shoal.report.latency_tables import benchmark_table


class Stack(nn.Module):
    """`layers` linear layers; each call advances the clock by 10 ms per layer."""

    def __init__(self, clock: list[float], layers: int) -> None:
        super().__init__()
        self.clock = clock
        self.body = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(layers)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock[0] += 0.01 * len(self.body)
        return self.body(x)


def test_ratios_say_how_many_times_less_than_the_baseline() -> None:
    clock = [0.0]
    found = benchmark(
        Stack(clock, 2),
        torch.zeros(4, 8),
        baseline=Stack(clock, 6),
        repeats=8,
        min_seconds=0,
        clock=lambda: clock[0],
    )
    assert found.baseline is not None
    assert found.speedup is not None
    assert found.speedup.median == pytest.approx(3.0)
    assert found.macs_ratio == 3.0
    assert found.params_ratio == 3.0
    assert (found.macs, found.params, found.batch_size) == (128, 128, 4)
    assert found.latency.median_ms == pytest.approx(20.0)
    assert found.baseline.latency.median_ms == pytest.approx(60.0)
    assert json.loads(json.dumps(found.to_dict()))["baseline"]["macs"] == 384

    said = str(found)
    for words in ("latency at batch 4 on cpu: 20 ms (20 to 20)", "128 MACs per sample",
                  "baseline / this: 3.00 × (2.97 to 3.03)"):  # fmt: skip
        assert words in said
    assert "depth" not in said  # not known of a module without a graph

    table = benchmark_table(found)
    assert [column.name for column in table.columns] == ["", "baseline", "this", "baseline / this"]
    assert [column.name for column in benchmark_table(found, "dense").columns[1:]] == [
        "dense", "this", "dense / this",
    ]  # fmt: skip
    rows = {name: cells for name, *cells in table.texts()}
    assert rows["latency"] == ["60 ms", "20 ms", "3.00 × (2.97 to 3.03)"]
    assert rows["  lower quartile"] == rows["  upper quartile"] == ["60 ms", "20 ms", ""]
    assert rows["samples per second"][:2] == ["66.67", "200"]
    assert rows["MACs per sample"] == ["384", "128", "3.00 ×"]
    assert rows["depth, layers"][:2] == ["unknown", "unknown"]
    assert table.notes[0].startswith("batch 4 on cpu, ")


def test_a_graph_has_a_depth_and_a_baseline_is_optional() -> None:
    net = fx.symbolic_trace(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    found = benchmark(net, torch.zeros(4, 8), warmup=1, repeats=3, min_seconds=0)
    assert found.depth == 2
    assert found.baseline is None
    assert found.speedup is None
    assert found.to_dict()["speedup"] is None
    assert "depth 2 layers" in str(found)


@pytest.mark.long
def test_a_network_without_work_has_no_ratio() -> None:
    found = benchmark(
        nn.ReLU(), torch.zeros(4, 8), nn.Linear(8, 8), warmup=1, repeats=3, min_seconds=0
    )
    assert found.macs_ratio is None
    assert found.params_ratio is None
    assert found.speedup is not None


def test_only_modules_are_benchmarked() -> None:
    with pytest.raises(ConfigError, match=r"the baseline must be an nn\.Module, not builtin"):
        benchmark(nn.ReLU(), torch.zeros(1, 1), torch.relu)  # type: ignore[arg-type]
