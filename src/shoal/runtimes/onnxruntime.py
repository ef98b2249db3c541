"""ONNX Runtime: the network as an exported file, run by a session."""

from __future__ import annotations

import importlib.util
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from typing_extensions import override

from shoal.errors import ConfigError, missing_extra
from shoal.network.inputs import Inputs
from shoal.runtimes.onnx_file import OnnxRunner
from shoal.runtimes.runtime import Runtime, register_runtime
from shoal.runtimes.write import export

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@register_runtime("onnxruntime")
class OnnxRuntime(Runtime):
    """ONNX Runtime, on the CPU unless a device is given."""

    name = "onnxruntime"

    @property
    @override
    def version(self) -> str:
        return version("onnxruntime")

    @override
    def lacking(self) -> str | None:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                return str(missing_extra(package, "onnx", "latency in ONNX Runtime"))
        return None

    @override
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> OnnxRunner:
        kind = self.place([network], inputs).type
        if kind not in _PROVIDERS:
            raise ConfigError(f"ONNX Runtime runs on 'cpu' or 'cuda' here, not on '{kind}'")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(network, path, inputs, check=check)
            # The session holds all of the file in memory.
            return OnnxRunner(path, threads=self.threads, providers=[_PROVIDERS[kind]])
