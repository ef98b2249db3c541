from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.errors import ConfigError, NameNotFoundError, ShoalError
from shoal.measure import latency_ratio, measure_latency
from shoal.runtimes import Runner, Runtime, export, find_runtime, installed, title_of
from shoal.runtimes.eager import Eager
from shoal.runtimes.onnx_runner import CPU, CUDA, TENSORRT, OnnxRunner

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
    # Of several lines, the first says what is wrong.
    wrong = r"with these inputs \(.*INVALID_ARGUMENT.*\): pass tensors of the exported shapes"
    with pytest.raises(ConfigError, match=wrong):
        runner(x, torch.randn(2, 5))
    with pytest.raises(ConfigError, match=wrong), runner.ready((x, torch.randn(2, 5))):
        pass
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


class Sum(nn.Module):
    def forward(self, x: Tensor, *, features: list[Tensor]) -> Tensor:
        return x + 2 * features[0] + 3 * features[1]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_keyword_inputs_may_be_nested(runtime: str) -> None:
    pytest.importorskip(runtime)

    def inputs(batch: int) -> dict[str, Any]:
        return {"x": torch.randn(batch, 3), "features": list(torch.randn(2, batch, 3))}

    network = shoal.capture(Sum(), inputs(2))
    runner = find_runtime(runtime, threads=1).make(network, inputs(2), check=True)
    given = inputs(5)
    torch.testing.assert_close(runner(**given), network(**given))
    found = measure_latency({"net": runner}, given, **QUICK)
    assert found["net"].batch_size == 5


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


@pytest.mark.long
def test_latency_is_measured_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    models, x = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 30)}, torch.randn(2, 3)
    for runtime in ("eager", "onnxruntime"):
        found = measure_latency(models, x, runtime=runtime, **QUICK)
        assert {name: one.batch_size for name, one in found.items()} == {"a": 2, "b": 2}
        assert len(found["a"].rounds_ms) == len(found["b"].rounds_ms) == 3
    with pytest.raises(NameNotFoundError, match="did you mean 'onnxruntime'"):
        measure_latency(models, x, runtime="onnxruntme")
    monkeypatch.setattr("shoal.runtimes.onnx_runner.importlib.util.find_spec", lambda name: None)
    find_runtime("eager")
    with pytest.raises(ShoalError, match="shoal"):
        find_runtime("onnxruntime")


@pytest.mark.parametrize(
    ("runtime", "match"),
    [
        ("eager?thread=1", "'eager' does not take 'thread': did you mean 'threads'"),
        ("eager?threads=0", "threads is 0: give at least 1"),
        ("eager?threads=two", "threads is 'two': give at least 1"),
        ("openvino?threads=0", "threads is 0: give at least 1"),
        ("torch.nn:Linear", "'torch.nn:Linear' is not a runtime: give a name, or an instance"),
        (Eager, "is not a runtime: give a name, or an instance"),
    ],
)
def test_what_is_no_runtime_gets_one_clear_line(runtime: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as error:
        find_runtime(runtime)
    assert "\n" not in str(error.value)


def test_every_runtime_gives_the_networks_outputs_and_a_call_to_time() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    network, x = shoal.capture(net.eval(), torch.randn(2, 3, 8, 8)).train(), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = network.eval()(x)
        network.train()
    for name in installed():
        runtime = find_runtime(name, threads=1)
        assert runtime.title == title_of(name) != name
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


def test_a_runtime_without_a_title_is_called_by_its_name() -> None:
    assert title_of("nobody/knows.py:It") == "nobody/knows.py:It"


class Session:
    """ONNX Runtime's session, as it is where a GPU's provider loads or does not."""

    def __init__(self, providers: list[str]) -> None:
        self.providers = providers

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {name: {"device_id": "1"} for name in self.providers if name != CPU}

    def get_inputs(self) -> list[object]:
        return []

    get_outputs = get_inputs


@pytest.mark.parametrize(
    ("providers", "device"), [([CUDA, CPU], "cuda:1"), ([TENSORRT, CUDA], "cuda:1"), ([CPU], "cpu")]
)
def test_a_session_tells_where_it_really_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch, providers: list[str], device: str
) -> None:
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: Session(providers))
    assert OnnxRunner(path, providers=[CUDA, CPU]).device == device


def test_a_gpu_without_its_provider_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.device("cuda", 0)
    monkeypatch.setattr("shoal.runtimes.runtime.resolve_device", lambda device: here)
    with pytest.raises(ConfigError, match="onnxruntime-gpu"):
        find_runtime("onnxruntime", device="cuda").place([], torch.randn(2))
    found = find_runtime("onnxruntime")
    monkeypatch.setattr(type(found), "home", staticmethod(lambda *_: here))
    assert found.place([], torch.randn(2)) == torch.device("cpu")
    monkeypatch.setattr("shoal.runtimes.onnxruntime.has_provider", lambda name: name == CUDA)
    assert found.place([], torch.randn(2)) == here
