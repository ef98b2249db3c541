"""TensorRT: the network as an exported file, run by ONNX Runtime's provider for it.

An engine is built for the batch size it is run at, which takes up to minutes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from typing_extensions import override

from shoal.errors import ConfigError, ShoalError
from shoal.network.inputs import Inputs, resolve_device
from shoal.runtimes.onnx_runner import (
    CPU,
    CUDA,
    TENSORRT,
    FileRunner,
    OnnxRunner,
    has_provider,
    lacking_package,
)
from shoal.runtimes.onnxruntime import OnnxRuntime
from shoal.runtimes.proof import check_runner
from shoal.runtimes.runtime import Runner, Runtime, register_runtime
from shoal.runtimes.write import ExportReport, export


@register_runtime("tensorrt")
class TensorRT(OnnxRuntime):
    """TensorRT on an NVIDIA GPU; what it cannot run, CUDA kernels of ONNX Runtime do."""

    name = "tensorrt"
    title = "TensorRT"
    slow_start = True
    int8 = ""  # its activations have to be symmetric, unlike those of the CPU's files
    quantize = Runtime.quantize

    @property
    @override
    def version(self) -> str:
        import tensorrt

        return f"{tensorrt.__version__}, ONNX Runtime {super().version}"

    @override
    def lacking(self) -> str | None:
        lacking = lacking_package("onnxruntime", "onnx", "latency in TensorRT")
        if lacking is not None:
            return lacking
        if not has_provider(TENSORRT) or importlib.util.find_spec("tensorrt") is None:
            return (
                "latency in TensorRT needs the packages 'tensorrt' and 'onnxruntime-gpu': run "
                "`pip install tensorrt onnxruntime-gpu`, the latter in the place of 'onnxruntime'"
            )
        if not torch.cuda.is_available():
            return "latency in TensorRT needs an NVIDIA GPU and PyTorch sees none here: use another"
        return None

    @override
    def place(self, networks: Iterable[Any], inputs: Inputs) -> torch.device:
        home = self.home(networks, inputs)
        elsewhere = home if home.type == "cuda" else "cuda"
        place = resolve_device(elsewhere if self.device is None else self.device)
        if place.type != "cuda":
            raise ConfigError(f"TensorRT runs on 'cuda', not on '{place.type}': omit the device")
        return place

    @override
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> Runner:
        place = self.place([network], inputs)
        with TemporaryDirectory() as folder:
            exported = export(network, Path(folder) / "model.onnx", inputs, check=False)
            runner = _TensorRTRunner(exported, place.index or 0, self.threads)
        if check:
            check_runner(runner, network, inputs, self.title)
        return runner


class _TensorRTRunner(FileRunner):
    def __init__(self, exported: ExportReport, gpu: int, threads: int | None) -> None:
        self.path = Path(exported.path)
        self.inputs, self.outputs = exported.inputs, exported.outputs
        self._content = self.path.read_bytes()
        self.device = f"cuda:{gpu}"
        self.threads = torch.get_num_threads() if threads is None else threads
        self._providers = [(name, {"device_id": gpu}) for name in (TENSORRT, CUDA)]
        self._sessions: dict[int, OnnxRunner] = {}  # by batch size

    @override
    def computed(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        return self._session(feed).computed(feed)

    @override
    def timed(self, feed: Mapping[str, Any]) -> Callable[[], object]:
        return self._session(feed).timed(feed)

    def _session(self, feed: Mapping[str, Any]) -> OnnxRunner:
        batch = next(len(value) for value in feed.values() if value.ndim)
        if batch not in self._sessions:
            providers = [*self._providers, CPU]
            with TemporaryDirectory() as folder:
                path = Path(folder) / self.path.name
                path.write_bytes(self._content)
                session = OnnxRunner(path, threads=self.threads, providers=providers, batch=batch)
            if session.provider != TENSORRT:
                raise ShoalError(
                    f"ONNX Runtime could not load TensorRT and took {session.provider}: install "
                    "the release of tensorrt that this onnxruntime-gpu was built for"
                )
            self._sessions[batch] = session
        return self._sessions[batch]
