"""The end of a search: what is measured beside what, and against what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import small_runs
from shoal.measure import InRuntime, SideBySide
from shoal.measure.latency import Latency
from shoal.merge.report import MergeReport
from shoal.network import Network
from shoal.search.gauge import end_of, folded
from shoal.surgery import linearize_


@pytest.fixture(scope="module")
def pair() -> tuple[Network, Network]:
    """The dense network, and the same without two rectifiers."""
    dense = small_runs.captured()
    result = dense.copy().eval()
    linearize_(result, ["act", "relu_1"], loader=[small_runs.digits().example_inputs(50)])
    return dense.copy().eval(), result


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def test_four_networks_in_two_runtimes_against_dense_folded(pair: tuple[Network, Network]) -> None:
    pytest.importorskip("onnxruntime")
    dense, result = pair
    before = [network.code for network in pair]
    inputs = small_runs.digits().example_inputs(3)
    found = end_of(dense, result, inputs, batch=3)
    assert [network.code for network in pair] == before
    assert norms(found.merged) == 0
    names = {"dense", "dense_folded", "result", "result_merged"}
    eager, onnx = found.latency.runtimes
    assert (eager["runtime"], onnx["runtime"]) == ("eager", "onnxruntime")
    for runtime in (eager, onnx):
        assert runtime["baseline"] == "dense_folded"
        assert set(runtime["latency"]) == set(runtime["ratio"]) == names
        assert {one["batch_size"] for one in runtime["latency"].values()} == {3}
        assert runtime["missing"] == {}
    assert found.latency.speedup == eager["ratio"]["result_merged"]
    for name in names:
        assert getattr(found.latency, f"{name}_ms") == eager["latency"][name]["median_ms"]
    assert found.report.max_rel_error <= 1e-5
    with torch.no_grad():
        assert torch.allclose(found.merged(inputs), result(inputs), atol=1e-4)


def test_the_runtime_that_decides_gives_the_headline(
    pair: tuple[Network, Network], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    inputs = small_runs.digits().example_inputs(2)
    found = end_of(*pair, inputs, batch=2, runtime="onnxruntime")
    _, onnx = found.latency.runtimes
    assert found.report.runtime == found.latency.runtime == onnx["runtime"] == "onnxruntime"
    assert found.latency.speedup == onnx["ratio"]["result_merged"]
    assert found.latency.result_merged_ms == onnx["latency"]["result_merged"]["median_ms"]
    assert MergeReport.from_dict(found.report.to_dict()) == found.report
    with torch.no_grad():
        assert torch.allclose(found.merged(inputs), pair[1](inputs), atol=1e-4)


def test_folding_leaves_the_network_and_computes_the_same(pair: tuple[Network, Network]) -> None:
    dense, _ = pair
    without = folded(dense)
    assert (norms(dense), norms(without)) == (1, 0)
    x = small_runs.digits().example_inputs(5)
    with torch.no_grad():
        assert torch.allclose(without(x), dense(x), atol=1e-4)


def latency(*rounds: float) -> Latency:
    return Latency(sorted(rounds)[1], 0.0, 0.0, 3, 1, 1, "cpu", 1, rounds)


def test_a_ratio_is_the_baselines_time_over_a_networks() -> None:
    found = SideBySide("eager", "slow", {"slow": latency(4, 6, 8), "fast": latency(2, 3, 4)}, {})
    assert found.ratio("fast").median == 2.0
    assert found.ratio("slow").median == 1.0
    assert found.to_dict()["ratio"]["fast"]["q1"] == 2.0


def test_a_network_that_cannot_be_exported_is_left_out() -> None:
    pytest.importorskip("onnxruntime")

    class Wild(nn.Module):
        """Its depth follows from its input: nothing that can be captured."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if float(x.sum()) > 0 else x

    x = torch.ones(2, 3)
    models = {"plain": nn.Linear(3, 3).eval(), "wild": Wild()}
    runners = InRuntime("onnxruntime", models, x)
    assert set(runners.missing) == {"wild"}
    assert "\n" not in runners.missing["wild"]
    found = runners.measure(x, "plain", min_seconds=0)
    assert set(found.latencies) == {"plain"}
    without = runners.measure(x, "wild", min_seconds=0)
    assert without.latencies == {}
    assert set(without.missing) == {"plain", "wild"}
    assert without.to_dict()["ratio"] == {}
    assert set(InRuntime("eager", models, x).measure(x, "plain", min_seconds=0).latencies) == set(
        models
    )
