"""OpenVINO: the network as an exported file, compiled for the shapes that it is run on.

Reading the file was as fast as converting the exported program, and is what users deploy. With
shapes that are fixed OpenVINO plans better. It computes in float32, though it would take bfloat16
by itself on some processors: latencies are compared at the same precision. Its threads are not
bound to cores, where two programs would get in each other's way.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from shoal.errors import ConfigError, ShoalError
from shoal.network.inputs import Inputs, as_call, last_line
from shoal.runtimes.onnx_runner import FileRunner, lacking_package
from shoal.runtimes.openvino_int8 import quantized
from shoal.runtimes.proof import check_runner
from shoal.runtimes.runtime import Runner, Runtime, register_runtime
from shoal.runtimes.translated import onnx_bytes


def _library() -> Any:
    """Import OpenVINO; without its telemetry, by which it and NNCF report their use to Intel."""
    blocked: dict[str, Any] = sys.modules  # None makes an import fail, which both allow for
    blocked.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


@functools.cache
def _core() -> Any:
    """Return OpenVINO's core, one for the process and kept until it ends.

    Each core sets the stack that signals are handled on, and at its end sets the one that it found.
    With two that end in the order they began, that is the stack of the first, which is gone: the
    next signal, as of Ctrl-C or of a child that ends, is a segmentation fault.
    """
    return _library().Core()


@register_runtime("openvino")
class OpenVino(Runtime):
    """OpenVINO on the CPU, told to answer one call at a time as fast as it can."""

    name = "openvino"
    title = "OpenVINO"
    int8 = ".xml"  # and its weights beside it, in .bin

    @property
    @override
    def version(self) -> str:
        return version("openvino")

    @override
    def lacking(self) -> str | None:
        return lacking_package("openvino", "openvino", "latency in OpenVINO")

    @override
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> Runner:
        place = self.place([network], inputs)
        if place.type != "cpu":
            raise ConfigError(f"OpenVINO runs on 'cpu' here, not on '{place.type}'")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(onnx_bytes(network, inputs))
            runner = OpenVinoRunner(path, threads=self.threads)
        if check:
            check_runner(runner, network, inputs, self.title)
        return runner

    @override
    def quantize(self, network: nn.Module, samples: Sequence[Inputs], path: Path) -> Runner:
        with tempfile.TemporaryDirectory() as folder:
            plain, content = Path(folder) / "model.onnx", onnx_bytes(network, samples[0])
            plain.write_bytes(content)
            reader = OpenVinoRunner(plain)
            feeds = [reader.feed(*args, **kwargs) for args, kwargs in map(as_call, samples)]
            model = _core().read_model(content)
        _library().save_model(quantized(model, feeds), path, compress_to_fp16=False)
        return OpenVinoRunner(path, threads=self.threads)


class OpenVinoRunner(FileRunner):
    """A file in OpenVINO, called with PyTorch tensors: `.onnx`, or OpenVINO's own `.xml`.

    `threads` is by default as many as PyTorch uses here. Raises `ShoalError` where OpenVINO cannot
    read or compile the file.
    """

    device = "cpu"

    @staticmethod
    @override
    def reason(error: BaseException) -> str:
        return last_line(error)  # the first ones say where in its code

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        self.path = Path(path)
        self.threads = torch.get_num_threads() if threads is None else threads
        # Read from memory, so that the file may go.
        given: Any = self.path.read_bytes() if self.path.suffix == ".onnx" else self.path
        with self._telling("read"):
            self._model = _core().read_model(given)
        self.inputs = tuple(value.get_any_name() for value in self._model.inputs)
        self.outputs = tuple(value.get_any_name() for value in self._model.outputs)
        self._requests: dict[tuple[Any, ...], Any] = {}  # by the shapes of their inputs

    @override
    def computed(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        request = self._request(feed)
        request.infer()
        return [value.data.copy() for value in request.output_tensors]

    @override
    def timed(self, feed: Mapping[str, Any]) -> Callable[[], object]:
        request = self._request(feed)
        return lambda: request.infer(share_outputs=True)  # which stay where they were computed

    def _request(self, feed: Mapping[str, Any]) -> Any:
        """Return a request that reads these arrays, of a model compiled for their shapes."""
        tensor = _library().Tensor
        shapes = tuple(value.shape for value in feed.values())
        if shapes not in self._requests:
            # What does not fit is told by whoever gave the arrays: see `FileRunner.run`.
            self._model.reshape({name: value.shape for name, value in feed.items()})
            with self._telling("compile"):
                compiled = _core().compile_model(self._model, "CPU", self._how())
                self._requests[shapes] = compiled.create_infer_request()
        request = self._requests[shapes]
        for name, value in feed.items():
            request.set_tensor(name, tensor(value, shared_memory=True))
        return request

    def _how(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self.threads,
            "ENABLE_CPU_PINNING": False,
        }

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Raise `ShoalError` for what goes wrong inside."""
        try:
            yield
        except Exception as error:
            reason = self.reason(error)
            raise ShoalError(
                f"OpenVINO cannot {what} '{self.path}' ({reason}): choose another runtime"
            ) from error
