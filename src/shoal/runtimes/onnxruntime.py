"""ONNX Runtime: the network as an exported file, run by a session."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from shoal.errors import ConfigError
from shoal.network.inputs import Inputs, as_call
from shoal.runtimes.onnx_int8 import write_int8
from shoal.runtimes.onnx_runner import CPU, CUDA, OnnxRunner, has_provider, lacking_package
from shoal.runtimes.proof import check_runner
from shoal.runtimes.runtime import Runner, Runtime, register_runtime
from shoal.runtimes.translated import onnx_bytes


@register_runtime("onnxruntime")
class OnnxRuntime(Runtime):
    """ONNX Runtime: on the GPU of the network where it has a provider for it, else on the CPU."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    int8 = ".onnx"

    @property
    @override
    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    @override
    def lacking(self) -> str | None:
        return lacking_package(self.name, "onnx", "latency in ONNX Runtime")

    @override
    def place(self, networks: Iterable[Any], inputs: Inputs) -> torch.device:
        if self.device is None:
            home = self.home(networks, inputs)
            return home if home.type == "cuda" and has_provider(CUDA) else torch.device("cpu")
        place = super().place(networks, inputs)
        if place.type not in ("cpu", "cuda"):
            raise ConfigError(f"ONNX Runtime runs on 'cpu' or 'cuda' here, not on '{place.type}'")
        if place.type == "cuda" and not has_provider(CUDA):
            raise ConfigError(
                "the ONNX Runtime that is installed has no CUDA provider: install onnxruntime-gpu "
                "in its place, or use device='cpu'"
            )
        return place

    @override
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> Runner:
        place = self.place([network], inputs)
        gpu: list[Any] = [(CUDA, {"device_id": place.index or 0})] if place.type == "cuda" else []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(onnx_bytes(network, inputs))
            # The session holds all of the file in memory.
            runner = OnnxRunner(path, threads=self.threads, providers=[*gpu, CPU])
        if check:
            check_runner(runner, network, inputs, self.title)
        return runner

    @override
    def quantize(self, network: nn.Module, samples: Sequence[Inputs], path: Path) -> Runner:
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "model.onnx"
            plain.write_bytes(onnx_bytes(network, samples[0]))
            reader = OnnxRunner(plain)
            write_int8(
                plain,
                (reader.feed(*args, **kwargs) for args, kwargs in map(as_call, samples)),
                path,
            )
        return OnnxRunner(path, threads=self.threads)  # int8 is for the CPU
