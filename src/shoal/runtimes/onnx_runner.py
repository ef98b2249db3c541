"""An exported file that runs, called with PyTorch tensors: what is common, and in ONNX Runtime."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from shoal.errors import ConfigError, OptionError, ShoalError, missing_extra
from shoal.network.inputs import Inputs, as_call, first_line, tensors_of
from shoal.runtimes.onnx_file import BATCH
from shoal.runtimes.program import named_leaves
from shoal.runtimes.runtime import Runner

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"


def lacking_package(package: str, extra: str, purpose: str) -> str | None:
    """Return which package an exported network cannot be run without, and how to install it."""
    for needed in ("onnx", "onnxscript", package):
        if importlib.util.find_spec(needed) is None:
            return str(missing_extra(needed, extra, purpose))
    return None


def has_provider(name: str) -> bool:
    """Whether the ONNX Runtime that is installed has a provider, which need not work here."""
    import onnxruntime

    return name in onnxruntime.get_available_providers()


class FileRunner(Runner):
    """A file that is fed numpy arrays by name; called with tensors in the order of its inputs."""

    path: Path
    inputs: tuple[str, ...]  # names, in order
    outputs: tuple[str, ...]

    @staticmethod
    def reason(error: BaseException) -> str:
        """Return the line of an error's text that says what is wrong."""
        return first_line(error)

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        """Run one batch: tensors (nested ones too) for the first inputs in order, others by name.

        Returns the output on the CPU; where there are several, all of them by name. Raises
        `ConfigError` if the inputs are not the model's.
        """
        values = self.run(self.feed(*args, **kwargs))
        if len(values) == 1:
            return values[0]
        return dict(zip(self.outputs, values, strict=True))

    def run(self, feed: Mapping[str, Any]) -> list[Tensor]:
        """Run numpy arrays by input name; return all outputs in order; raises `ConfigError`."""
        try:
            return [torch.as_tensor(value) for value in self.computed(feed)]
        except ShoalError:
            raise
        except Exception as error:
            raise ConfigError(
                f"'{self.path}' cannot be run with these inputs ({self.reason(error)}): pass "
                f"tensors of the exported shapes and types for {', '.join(self.inputs)}"
            ) from error

    @abstractmethod
    def computed(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        """Return all outputs in order, as numpy arrays."""

    @abstractmethod
    def timed(self, feed: Mapping[str, Any]) -> Callable[[], object]:
        """Return a call that runs these arrays, which lie where it wants them."""

    @override
    @contextmanager
    def ready(self, inputs: Inputs) -> Iterator[Callable[[], object]]:
        args, kwargs = as_call(inputs)
        feed = self.feed(*args, **kwargs)
        self.run(feed)  # inputs that do not fit are reported here, in our words
        yield self.timed(feed)

    def feed(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return these inputs as contiguous numpy arrays by name; raises `ConfigError`."""
        positional = tensors_of(args)
        leaves = (leaf for key, tree in kwargs.items() for leaf in named_leaves(tree, key))
        named = {name: leaf for name, leaf in leaves if isinstance(leaf, Tensor)}
        free = [name for name in self.inputs if name not in named]
        unknown = sorted(set(named) - set(self.inputs))
        if unknown or len(positional) != len(free):
            raise ConfigError(
                f"'{self.path}' takes the inputs ({', '.join(self.inputs)}), and was given "
                f"{len(positional)} positional ones and {sorted(named)}: give each of them once"
            )
        named.update(zip(free, positional, strict=True))
        return {name: _array(name, named[name]) for name in self.inputs}


class OnnxRunner(FileRunner):
    """An `.onnx` file in ONNX Runtime, called with PyTorch tensors.

    `threads` are those of one operation, by default as many as PyTorch uses here; of `providers`,
    ONNX Runtime's, the preferred one comes first. `batch` fixes the batch size. Raises
    `ConfigError` without such a file, and `ShoalError` if onnxruntime is not installed or cannot
    run it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        providers: Sequence[Any] = (CPU,),
        batch: int | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(f"there is no file '{self.path}': give one that shoal.export wrote")
        if threads is not None and threads < 1:
            raise OptionError("threads", threads, "at least 1")
        self.threads = threads if threads is not None else torch.get_num_threads()
        self._session = _open_session(self.path, self.threads, list(providers), batch)
        self.provider: str = self._session.get_providers()[0]  # that works; others do what it lacks
        options = self._session.get_provider_options().get(self.provider, {})
        self._gpu = int(options.get("device_id", 0))
        self.device = "cpu" if self.provider == CPU else f"cuda:{self._gpu}"
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    @override
    def computed(self, feed: Mapping[str, Any]) -> Sequence[Any]:
        values: Sequence[Any] = self._session.run(None, dict(feed))
        return values

    @override
    def timed(self, feed: Mapping[str, Any]) -> Callable[[], object]:
        session = self._session
        if self.provider == CPU:
            return lambda: session.run(None, feed)
        from onnxruntime import OrtValue

        # Inputs and outputs stay on the GPU, else their transfer would be timed; the call returns
        # when the GPU is done.
        binding = session.io_binding()
        for name, value in feed.items():
            held = OrtValue.ortvalue_from_numpy(value, "cuda", self._gpu)
            binding.bind_ortvalue_input(name, held)
        for name in self.outputs:
            binding.bind_output(name, "cuda", self._gpu)
        return lambda: session.run_with_iobinding(binding)


def _open_session(path: Path, threads: int, providers: list[Any], batch: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", "running an .onnx file") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    # A session's threads go on spinning after a run, in the way of whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if batch is not None:
        options.add_free_dimension_override_by_name(BATCH, batch)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        raise ShoalError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run '{path}' ({first_line(error)}): "
            "it may lack an operation for the network's number type; export in float32"
        ) from error


def _array(name: str, tensor: Tensor) -> Any:
    """Return a contiguous numpy array: a library would copy any other on each run."""
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:  # numpy has no bfloat16
        raise ConfigError(
            f"input '{name}' has type {str(tensor.dtype).removeprefix('torch.')}, which numpy "
            "lacks: export the network in float32 or float16"
        ) from error
