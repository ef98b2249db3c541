from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.errors import ConfigError, NameNotFoundError, ShoalError
from shoal.measure import latency_ratio, measure_latency
from shoal.runtimes import RUNTIMES, Runner, Runtime, export, find_runtime
from shoal.runtimes.onnx_file import OnnxRunner

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

QUICK = {"repeats": 3, "warmup": 1, "min_seconds": 0.0}


class Add(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return 2 * x + y


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = shoal.capture(Add(), (torch.randn(2, 3), torch.randn(2, 3)))
    file = tmp_path_factory.mktemp("runtime") / "add.onnx"
    export(network, file)
    return file


def test_a_runner_takes_tensors_by_place_and_by_name(path: Path) -> None:
    runner = OnnxRunner(path, threads=1)
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    assert (runner.inputs, runner.threads, runner.device) == (("x", "y"), 1, "cpu")
    for found in (runner(x, y), runner(y=y, x=x), runner(x, y=y), runner(y, x=x)):
        torch.testing.assert_close(found, 2 * x + y)


def test_a_runner_takes_tensors_of_any_layout(path: Path) -> None:
    x = torch.randn(3, 4).t().requires_grad_()
    torch.testing.assert_close(OnnxRunner(path)(x, x), 3 * x.detach())


def test_a_runner_says_what_does_not_fit(path: Path, tmp_path: Path) -> None:
    runner = OnnxRunner(path)
    x = torch.randn(2, 3)
    with pytest.raises(ConfigError, match=r"inputs \(x, y\)"):
        runner(x)
    with pytest.raises(ConfigError, match="z"):
        runner(x, z=x)
    with pytest.raises(ConfigError, match="shapes and types"):
        runner(x, torch.randn(2, 5))
    with pytest.raises(ConfigError, match="bfloat16"):
        runner(x, x.bfloat16())
    with pytest.raises(ConfigError, match="no file"):
        OnnxRunner(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="threads"):
        OnnxRunner(path, threads=0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ShoalError, match="cannot run"):
        OnnxRunner(broken)


def test_latency_is_measured_in_pairs_of_rounds(path: Path) -> None:
    inputs = (torch.randn(5, 3), torch.randn(5, 3))
    network = shoal.capture(Add(), inputs)
    models = {"file": OnnxRunner(path, threads=1), "runner": OnnxRunner(path), "network": network}
    found = measure_latency(models, inputs, runtime="onnxruntime", threads=1, **QUICK)
    assert list(found) == ["file", "runner", "network"]
    for latency in found.values():
        assert (latency.batch_size, latency.samples, latency.device) == (5, 3, "cpu")
        assert latency.median_ms > 0
    assert found["file"].threads == found["network"].threads == 1
    assert latency_ratio(found["file"], found["network"]).pairs == 3


def test_a_clock_of_ones_own_decides_the_time(path: Path) -> None:
    ticks = iter(range(10**9))
    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    found = measure_latency(
        {"a": OnnxRunner(path)}, inputs, clock=lambda: float(next(ticks)), **QUICK
    )
    assert found["a"].rounds_ms == (1e3, 1e3, 1e3)


def test_a_runner_stands_beside_eager_networks(path: Path) -> None:
    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    models = {"eager": Add(), "runtime": OnnxRunner(path)}
    found = measure_latency(models, inputs, **QUICK)
    assert latency_ratio(found["eager"], found["runtime"]).pairs == 3


def test_latency_is_measured_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    models, x = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 30)}, torch.randn(2, 3)
    for runtime in ("eager", "onnxruntime"):
        found = measure_latency(models, x, runtime=runtime, **QUICK)
        assert {name: one.batch_size for name, one in found.items()} == {"a": 2, "b": 2}
        assert len(found["a"].rounds_ms) == len(found["b"].rounds_ms) == 3
    with pytest.raises(NameNotFoundError, match="did you mean 'onnxruntime'"):
        measure_latency(models, x, runtime="onnxruntme")
    monkeypatch.setattr("shoal.runtimes.onnxruntime.importlib.util.find_spec", lambda name: None)
    find_runtime("eager")
    with pytest.raises(ShoalError, match="shoal"):
        find_runtime("onnxruntime")


def test_every_runtime_gives_the_networks_outputs_and_a_call_to_time() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    network, x = shoal.capture(net.eval(), torch.randn(2, 3, 8, 8)).train(), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = network.eval()(x)
        network.train()
    for name in RUNTIMES:
        runtime = find_runtime(name, threads=1)
        assert runtime.name == name
        assert runtime.version[0].isdigit()
        runner = runtime.make(network, x, check=True)
        assert (runner.device, runner.threads) == ("cpu", 1)
        torch.testing.assert_close(runner(x), expected)
        with runner.ready(x) as call:
            call()
        assert network.training


def test_a_runtime_of_ones_own_is_one_class() -> None:
    class Doubled(Runtime):
        name, version = "doubled", "1"

        def make(self, network: nn.Module, inputs: Tensor, *, check: bool = False) -> Runner:
            return find_runtime("eager").make(nn.Sequential(network, network), inputs)

    found = measure_latency({"a": nn.Linear(3, 3)}, torch.randn(2, 3), runtime=Doubled(), **QUICK)
    assert found["a"].median_ms > 0
