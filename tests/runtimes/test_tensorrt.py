"""TensorRT, by a stand-in for ONNX Runtime's provider: no GPU is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shoal.errors import ConfigError, ShoalError
from shoal.runtimes import find_runtime
from shoal.runtimes.onnx_runner import CPU, CUDA, TENSORRT, OnnxRunner
from shoal.runtimes.tensorrt import TensorRT

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class OnCpu(OnnxRunner):
    """What TensorRT is asked for, computed by the CPU."""

    opened: list[tuple[int | None, list[str]]]
    provider_found: str

    def __init__(
        self, path: Path, *, threads: int, providers: Sequence[Any], batch: int | None
    ) -> None:
        self.opened.append((batch, [p if isinstance(p, str) else p[0] for p in providers]))
        super().__init__(path, threads=threads, batch=batch)
        self.provider = self.provider_found


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[OnCpu]:
    here = torch.device("cuda", 0)
    monkeypatch.setattr("shoal.runtimes.tensorrt.resolve_device", lambda device: here)
    monkeypatch.setattr("shoal.runtimes.tensorrt.OnnxRunner", OnCpu)
    monkeypatch.setattr(OnCpu, "opened", [], raising=False)
    monkeypatch.setattr(OnCpu, "provider_found", TENSORRT, raising=False)
    return OnCpu


def test_an_engine_is_built_once_for_each_batch_size(stand_in: type[OnCpu]) -> None:
    network = nn.Linear(3, 4).eval()
    runner = TensorRT(threads=1).make(network, torch.randn(2, 3))
    for size in (1, 32, 1):
        x = torch.randn(size, 3)
        torch.testing.assert_close(runner(x), network(x))
    providers = [TENSORRT, CUDA, CPU]
    assert stand_in.opened == [(1, providers), (32, providers)]
    assert (runner.device, runner.threads) == ("cuda:0", 1)


def test_a_provider_that_did_not_load_is_no_tensorrt(stand_in: type[OnCpu]) -> None:
    stand_in.provider_found = CUDA
    runner = TensorRT().make(nn.Linear(3, 4), torch.randn(2, 3))
    with pytest.raises(ShoalError, match=r"could not load TensorRT and took CUDA"):
        runner(torch.randn(2, 3))


def test_it_runs_on_a_gpu_alone() -> None:
    with pytest.raises(ConfigError, match="on 'cuda'"):
        TensorRT(device="cpu").place([], torch.randn(2))


def test_what_is_lacking_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShoalError, match="onnxruntime-gpu") as error:
        find_runtime("tensorrt")
    assert "\n" not in str(error.value)
    monkeypatch.setattr("shoal.runtimes.tensorrt.has_provider", lambda name: True)
    monkeypatch.setattr("shoal.runtimes.tensorrt.importlib.util.find_spec", lambda name: True)
    assert "GPU" in str(TensorRT().lacking())
