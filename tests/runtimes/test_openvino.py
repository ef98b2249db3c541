"""OpenVINO gives the network's outputs, in float32, at every batch size, with the asked threads."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shoal
from processes import start
from shoal.errors import ConfigError, ShoalError
from shoal.measure import measure_latency
from shoal.runtimes import find_runtime

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")

QUICK = {"repeats": 3, "warmup": 1, "min_seconds": 0.0}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(3, 4)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        return {"wide": self.f(x) * scale, "first": x.relu()}


@pytest.mark.long
@pytest.mark.parametrize("batch", [1, 5])
def test_keyword_inputs_and_several_outputs(batch: int) -> None:
    torch.manual_seed(0)
    example = {"x": torch.randn(2, 3), "scale": torch.randn(2, 1)}
    network = shoal.capture(Named().eval(), example)
    runner = find_runtime("openvino", threads=1).make(network, example, check=True)
    given = {"x": torch.randn(batch, 3), "scale": torch.randn(batch, 1)}
    found, expected = runner(**given), network(**given)
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert (runner.device, runner.threads) == ("cpu", 1)


def test_it_computes_in_float32_with_the_asked_threads() -> None:
    runner = find_runtime("openvino", threads=1).make(nn.Linear(3, 4), torch.randn(2, 3))
    runner(torch.randn(2, 3))
    (request,) = runner._requests.values()
    told = request.get_compiled_model().get_property
    assert told("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert told("INFERENCE_NUM_THREADS") == 1
    assert told("NUM_STREAMS") == 1


@pytest.mark.long
def test_one_runner_is_timed_at_several_batch_sizes() -> None:
    models = {"a": nn.Linear(3, 4)}
    runner = find_runtime("openvino").make(models["a"], torch.randn(2, 3))
    for size in (1, 4, 1):
        found = measure_latency({"a": runner}, torch.randn(size, 3), **QUICK)
        assert found["a"].batch_size == size
    assert len(runner._requests) == 2


def _a_signal_after_two_runners_ended_as_they_began() -> None:
    runtime, example = find_runtime("openvino", threads=1), torch.randn(2, 3)
    runners = [runtime.make(nn.Linear(3, 4), example, check=True) for _ in range(2)]
    while runners:
        del runners[0]
        gc.collect()
    reached: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: reached.append(number))
    signal.raise_signal(signal.SIGUSR1)
    assert reached == [signal.SIGUSR1]


def test_a_signal_finds_its_stack_after_runners_ended(tmp_path: Path) -> None:
    process = start(tmp_path, _a_signal_after_two_runners_ended_as_they_began)
    assert process.wait() == 0, process.printed()


def test_what_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    from shoal.runtimes.openvino import OpenVinoRunner

    runner = find_runtime("openvino").make(nn.Linear(3, 4), torch.randn(2, 3))
    # Its errors end in what is wrong; before that they say where in its own code.
    wrong = r"with these inputs \(.*dimension.*5.*\): pass tensors of the exported shapes"
    with pytest.raises(ConfigError, match=wrong) as error:
        runner(torch.randn(2, 5))
    assert "pp:" not in str(error.value)
    with pytest.raises(ConfigError, match=wrong), runner.ready(torch.randn(2, 5)):
        pass
    with pytest.raises(ConfigError, match="each of them once"):
        runner(torch.randn(2, 3), torch.randn(2, 3))
    torch.testing.assert_close(runner(torch.zeros(2, 3)).shape, torch.Size([2, 4]))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ShoalError, match="cannot read") as error:
        OpenVinoRunner(broken)
    assert "pp:" not in str(error.value)
    assert "\n" not in str(error.value)


def test_another_network_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.runtimes.openvino import OpenVinoRunner

    run = OpenVinoRunner.computed
    monkeypatch.setattr(OpenVinoRunner, "computed", lambda s, f: [1.01 * v for v in run(s, f)])
    with pytest.raises(ShoalError, match="computes something else"):
        find_runtime("openvino").make(nn.Linear(3, 4), torch.randn(2, 3), check=True)


@pytest.mark.long
def test_its_use_is_not_reported_to_its_maker() -> None:
    """OpenVINO, and NNCF with it, send a report over the network when they are imported."""
    code = """
import sys, torch, shoal
from shoal.runtimes import find_runtime
network = shoal.capture(torch.nn.Linear(2, 3).eval(), torch.randn(2, 2))
find_runtime("openvino").make(network, torch.randn(2, 2))
assert "openvino" in sys.modules
import openvino.tools.ovc
assert sys.modules["openvino_telemetry"] is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
