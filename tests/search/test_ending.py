"""The end of a search: what is measured beside what, and against what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch
from torch import nn

import small_runs
from shoal.measure import InRuntime, SideBySide
from shoal.measure.latency import Latency
from shoal.merge.cut import LatencyCosts
from shoal.merge.merge import merge_
from shoal.merge.report import Merged, MergeReport
from shoal.network import Network
from shoal.runtimes import Runtime
from shoal.search import ending
from shoal.search.ending import end_of, folded
from shoal.search.records import Int8
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every measurement be three rounds, in two runtimes."""
    for name in ("_DECIDES", "_OTHER"):
        monkeypatch.setattr(ending, name, {"min_seconds": 0.0, "repeats": 3, "warmup": 1})
    monkeypatch.setattr(ending, "installed", lambda: ["eager", "onnxruntime"])


def inputs(batch: int) -> torch.Tensor:
    return small_runs.digits().example_inputs(batch)


@pytest.mark.long
def test_dense_and_result_are_measured_in_every_runtime_at_every_batch_size(
    pair: tuple[Network, Network], quick: None
) -> None:
    pytest.importorskip("onnxruntime")
    dense, result = pair
    before = [network.code for network in pair]
    said: list[str] = []
    found = end_of(dense, result, inputs, batches=(3,), stage=said.append)
    assert [network.code for network in pair] == before
    assert norms(found.merged) == 0
    both = {"dense_folded", "result_merged"}
    entries = {(one["runtime"], one["batch"]): one for one in found.latency.runtimes}
    assert {("eager", 1), ("eager", 3), ("onnxruntime", 1), ("onnxruntime", 3)} <= set(entries)
    assert [place for place, one in entries.items() if one["decides"]] == [("eager", 3)]
    for (runtime, batch), one in entries.items():
        if one["missing"]:
            continue
        assert one["baseline"] == "dense_folded"
        assert both | ({"dense", "result"} if runtime == "eager" else set()) <= set(one["latency"])
        assert set(one["latency"]) == set(one["ratio"])
        assert {timed["batch_size"] for timed in one["latency"].values()} == {batch}
        assert f"measure in {runtime} at batch {batch}" in said
    own = entries["eager", 3]
    assert (found.latency.runtime, found.latency.batch) == ("eager", 3)
    assert found.latency.speedup == own["ratio"]["result_merged"]
    for name in ("dense", "dense_folded", "result", "result_merged"):
        assert getattr(found.latency, f"{name}_ms") == own["latency"][name]["median_ms"]
    assert found.report.max_rel_error <= 1e-5
    with torch.no_grad():
        assert torch.allclose(found.merged(inputs(5)), result(inputs(5)), atol=1e-4)


@pytest.mark.long
def test_the_runtime_that_decides_gives_the_headline(
    pair: tuple[Network, Network], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(LatencyCosts, "map_ms", lambda self, found, node: found.weight.numel())
    found = end_of(*pair, inputs, batches=(2,), runtimes=("onnxruntime",))
    (onnx,) = (one for one in found.latency.runtimes if one["decides"])
    assert found.report.runtime == found.latency.runtime == onnx["runtime"] == "onnxruntime"
    assert found.latency.speedup == onnx["ratio"]["result_merged"]
    assert found.latency.result_merged_ms == onnx["latency"]["result_merged"]["median_ms"]
    assert MergeReport.from_dict(found.report.to_dict()) == found.report
    with torch.no_grad():
        assert torch.allclose(found.merged(inputs(5)), pair[1](inputs(5)), atol=1e-4)


class Forged:
    """In place of `InRuntime`: the milliseconds of each network by runtime and batch size."""

    TIMES: ClassVar[dict[tuple[str, int], dict[str, float]]] = {}
    made: ClassVar[list[tuple[str, list[str]]]] = []
    seconds: ClassVar[float] = 0.0  # that each measurement takes

    def __init__(self, runtime: str, networks: Mapping[str, Network], example: object) -> None:
        self.runtime, self.networks = runtime, list(networks)
        self.lacking: dict[str, str] = {}
        self.made.append((runtime, list(networks)))

    def add(self, networks: Mapping[str, Network]) -> None:
        self.networks += networks
        self.made.append((self.runtime, list(networks)))

    def measure(self, batch: torch.Tensor, baseline: str, **timing: float) -> SideBySide:
        clock[0] += self.seconds
        times = {"result_merged": 1.0} | self.TIMES.get((self.runtime, len(batch)), {})
        found = {
            name: Latency(ms, ms, ms, 6, 1, len(batch), "cpu", 1, (ms,) * 6)
            for name, ms in ((name, times.get(name, 2.0)) for name in self.networks)
        }
        return SideBySide(self.runtime, baseline, found, self.lacking, len(batch))


clock = [0.0]


@pytest.fixture
def forged(monkeypatch: pytest.MonkeyPatch) -> type[Forged]:
    """Three runtimes that measure nothing, on a clock that only measurements move."""
    monkeypatch.setattr(ending, "InRuntime", Forged)
    monkeypatch.setattr(ending, "installed", lambda: ["compile", "eager", "onnxruntime"])
    monkeypatch.setattr(ending, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(Forged, "made", [])
    return Forged


def ends(pair: tuple[Network, Network], **where: Any) -> dict[tuple[str, int], dict[str, Any]]:
    found = end_of(*pair, inputs, **where).latency.runtimes
    return {(one["runtime"], one["batch"]): dict(one) for one in found}


def test_where_the_result_is_slower_it_is_measured_again_beside_the_result_folded(
    pair: tuple[Network, Network], forged: type[Forged], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {("onnxruntime", 4): {"result_merged": 2.5, "result_folded": 1.5}}
    monkeypatch.setattr(forged, "TIMES", times)
    monkeypatch.setattr(ending, "merge_", joins)
    found = ends(pair, batches=(4,))
    slow = found["onnxruntime", 4]
    assert set(slow["latency"]) == {"dense_folded", "result_merged", "result_folded"}
    assert slow["ratio"]["result_merged"]["median"] == 0.8
    others = [one for place, one in found.items() if place != ("onnxruntime", 4)]
    assert all("result_folded" not in one["latency"] for one in others)
    made = [names for runtime, names in forged.made if runtime == "onnxruntime"]
    assert made == [["dense_folded", "result_merged"], ["result_folded"]]  # each once


def test_what_was_added_to_tell_why_may_fail(
    pair: tuple[Network, Network], forged: type[Forged], monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(self: Forged, networks: Mapping[str, Network]) -> None:
        self.lacking = dict.fromkeys(networks, "it computes something else")

    monkeypatch.setattr(forged, "TIMES", {("eager", 4): {"result_merged": 2.5}})
    monkeypatch.setattr(forged, "add", add)
    monkeypatch.setattr(ending, "merge_", joins)
    slow = ends(pair, batches=(4,))["eager", 4]
    assert slow["missing"] == {"result_folded": "it computes something else"}
    assert "result_merged" in slow["latency"]


class Quantizes:
    """In place of `Int8Maker`: names what it was asked for, and quantizes nothing."""

    def make(self, runtime: Runtime, dense: Network, result: Network) -> Any:
        figures = Int8(
            runtime=runtime.name,
            file="net.int8",
            bytes=8,
            samples=50,
            agreement=100.0,
            top1_val=90.0,
            top1_test=None,
        )
        return figures, {f"dense_int8 on {runtime.threads}": None, "result_int8": None}


def test_a_runtime_with_options_is_measured_once_and_so_is_its_int8(
    pair: tuple[Network, Network], forged: type[Forged], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    asked = ("onnxruntime?threads=1", "onnxruntime?threads=2")
    monkeypatch.setattr(ending, "merge_", lambda network, *args, **given: merge_(network))
    found = end_of(*pair, inputs, runtimes=asked, int8=cast(Any, Quantizes()))
    names = [one["runtime"] for one in found.latency.runtimes]
    assert sorted(names) == ["compile", "eager", *asked]
    assert found.int8 is not None
    assert [one.runtime for one in found.int8] == ["onnxruntime"]
    made = dict(forged.made)
    assert "dense_int8 on 1" in made[asked[0]]
    assert "dense_int8 on 2" in made[asked[1]]


@pytest.mark.long
def test_runtimes_that_decide_nothing_are_given_a_limited_time(
    pair: tuple[Network, Network], forged: type[Forged], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forged, "seconds", 70.0)
    found = ends(pair, batches=(1, 8), runtimes=("eager",))
    measured = {place for place, one in found.items() if one["latency"]}
    # What takes long to start comes last.
    assert measured == {("eager", 1), ("eager", 8), ("onnxruntime", 1), ("onnxruntime", 8)}
    assert found["compile", 8]["missing"].keys() == {"dense_folded", "result_merged"}
    assert "120 s" in found["compile", 1]["missing"]["result_merged"]


def test_only_the_runtimes_that_decide_are_measured_where_that_was_asked_for(
    pair: tuple[Network, Network], forged: type[Forged]
) -> None:
    found = ends(pair, batches=(1, 8), runtimes=("eager",), everywhere=False)
    assert {runtime for runtime, _ in found} == {"eager"}


def joins(network: Network, *args: Any, **options: Any) -> MergeReport:
    """Merge as `merge_` does, and say that layers were joined."""
    report = merge_(network, *args, **options)
    joined = Merged("a", ("a", "b"), "two", "one", 2, 2, 1, 2.0, 1.0)
    return replace(report, merged=[*report.merged, joined])


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
    found = SideBySide("eager", "slow", {"slow": latency(4, 6, 8), "fast": latency(2, 3, 4)}, {}, 1)
    assert found.ratio("fast").median == 2.0
    assert found.ratio("slow").median == 1.0
    assert found.to_dict()["ratio"]["fast"]["q1"] == 2.0


@pytest.mark.long
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


def test_what_fails_at_one_size_leaves_out_itself_alone() -> None:
    class Small(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 2:
                raise RuntimeError("made for two samples\nat most")
            return 1 * x

    models = {"plain": nn.Linear(3, 3).eval(), "small": Small(), "other": nn.Linear(3, 3).eval()}
    runners = InRuntime("eager", models, torch.ones(2, 3))
    assert set(runners.measure(torch.ones(2, 3), "plain", min_seconds=0).latencies) == set(models)
    found = runners.measure(torch.ones(4, 3), "plain", min_seconds=0)
    assert set(found.latencies) == {"plain", "other"}
    assert "made for two samples" in found.missing["small"]
    assert "\n" not in found.missing["small"]
    without = runners.measure(torch.ones(4, 3), "small", min_seconds=0)
    assert without.latencies == {}
    assert set(without.missing) == set(models)
