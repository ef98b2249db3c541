"""An `.onnx` file in ONNX Runtime, called with PyTorch tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from shoal.errors import ConfigError, OptionError, ShoalError, missing_extra
from shoal.network.inputs import Inputs, as_call, first_line, tensors_of
from shoal.runtimes.runtime import Runner

__all__ = ["OnnxRunner"]

_CPU = "CPUExecutionProvider"


class OnnxRunner(Runner):
    """An `.onnx` file in ONNX Runtime, called with PyTorch tensors.

    Args:
        path: the file.
        threads: threads of one operation; None takes as many as PyTorch uses here.
        providers: ONNX Runtime's execution providers, the preferred one first; by default the CPU.

    Attributes:
        inputs: the names of the model's inputs.
        outputs: the names of its outputs.

    Raises:
        ConfigError: there is no such file, or `threads` is less than 1.
        ShoalError: onnxruntime is not installed, or cannot run the file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"there is no file '{self.path}': give one that shoal.export wrote")
        if threads is not None and threads < 1:
            raise OptionError("threads", threads, "at least 1")
        self.threads = threads if threads is not None else torch.get_num_threads()
        self._session = _open_session(self.path, self.threads, list(providers or [_CPU]))
        first: str = self._session.get_providers()[0]
        self.device = first.removesuffix("ExecutionProvider").lower()
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        """Run one batch.

        Args:
            *args: tensors (nested ones too) for the first inputs, in their order.
            **kwargs: tensors for inputs by name.

        Returns:
            The output on the CPU; where there are several, all of them by name.

        Raises:
            ConfigError: the inputs are not the model's.
        """
        values = self.run(self.feed(*args, **kwargs))
        if len(values) == 1:
            return values[0]
        return dict(zip(self.outputs, values, strict=True))

    def run(self, feed: Mapping[str, Any]) -> list[Tensor]:
        """Run one batch of numpy arrays by input name; return all outputs in their order.

        Raises:
            ConfigError: names, shapes or types are not the model's.
        """
        try:
            values = self._session.run(None, dict(feed))
        except Exception as error:
            raise ConfigError(
                f"'{self.path}' cannot be run with these inputs ({first_line(error)}): pass "
                f"tensors of the exported shapes and types for {', '.join(self.inputs)}"
            ) from error
        return [torch.as_tensor(value) for value in values]

    @override
    @contextmanager
    def ready(self, inputs: Inputs) -> Iterator[Callable[[], object]]:
        args, kwargs = as_call(inputs)
        feed = self.feed(*args, **kwargs)
        session = self._session
        self.run(feed)  # inputs that do not fit are reported here, in our words
        yield lambda: session.run(None, feed)

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return these inputs as contiguous numpy arrays by name; raises `ConfigError`."""
        positional = tensors_of(args)
        named = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
        free = [name for name in self.inputs if name not in named]
        unknown = sorted(set(named) - set(self.inputs))
        if unknown or len(positional) != len(free):
            raise ConfigError(
                f"'{self.path}' takes the inputs ({', '.join(self.inputs)}), and was given "
                f"{len(positional)} positional ones and {sorted(named)}: give each of them once"
            )
        named.update(zip(free, positional, strict=True))
        return {name: _array(name, named[name]) for name in self.inputs}


def _open_session(path: Path, threads: int, providers: list[str]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", "running an .onnx file") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    # A session's threads go on spinning after a run, in the way of whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ShoalError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run '{path}' ({first_line(error)}): "
            "it may lack an operation for the network's number type; export in float32"
        ) from error


def _array(name: str, tensor: Tensor) -> Any:
    """Return a contiguous numpy array: ONNX Runtime would copy any other on each run."""
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:  # numpy has no bfloat16
        raise ConfigError(
            f"input '{name}' has type {str(tensor.dtype).removeprefix('torch.')}, which numpy "
            "lacks: export the network in float32 or float16"
        ) from error
