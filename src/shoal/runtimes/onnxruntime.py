"""ONNX Runtime: the outputs and the latency of exported networks."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, ShoalError, missing_extra
from shoal.measure.latency import Latency
from shoal.measure.rounds import clock_timer, time_rounds
from shoal.measure.stats import quartiles
from shoal.network.inputs import Inputs, as_call, batch_size, first_line, tensors_of

__all__ = ["OnnxRunner", "lacking_package", "onnx_latency"]

_CPU = "CPUExecutionProvider"


class OnnxRunner:
    """An `.onnx` file in ONNX Runtime, called with PyTorch tensors.

    Args:
        path: the file.
        threads: threads of one operation; None takes as many as PyTorch uses here.
        providers: ONNX Runtime's execution providers, the preferred one first; by default the CPU.

    Attributes:
        path: the file.
        threads: threads of one operation.
        device: where it runs ("cpu", "cuda", …).
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
            raise ConfigError(f"threads must be at least 1, not {threads}")
        self.threads = threads if threads is not None else torch.get_num_threads()
        self._session = _open_session(self.path, self.threads, list(providers or [_CPU]))
        self.device = _device_of(self._session.get_providers()[0])
        self.inputs: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    @classmethod
    def of(
        cls,
        network: nn.Module,
        example: Inputs | None = None,
        *,
        threads: int | None = None,
        check: bool = True,
    ) -> OnnxRunner:
        """Export a network and open the file.

        Args:
            network: a captured network, or a module with an example.
            example: the inputs to export with; None takes random ones of the captured shapes.
            threads: threads of one operation.
            check: whether with the checks of `shoal.export`.

        Raises:
            ShoalError: a package of the extra "onnx" is missing, or the network cannot be
                exported.
        """
        from shoal.runtimes import export

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(network, path, example, check=check)
            return cls(path, threads=threads)  # the session holds all of the file in memory

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

    def bind(self, inputs: Inputs) -> Callable[..., object]:
        """Return a call that runs these inputs, converted once, whatever it is given.

        So it can stand among the models of `measure_latency`, beside eager networks that are
        called with the same inputs.
        """
        args, kwargs = as_call(inputs)
        feed = self.feed(*args, **kwargs)
        session = self._session
        self.run(feed)  # a misfit is told here, in our words
        return lambda *_, **__: session.run(None, feed)

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


def onnx_latency(
    models: Mapping[str, str | Path | nn.Module | OnnxRunner],
    inputs: Inputs,
    *,
    threads: int | None = None,
    check: bool = True,
    warmup: int = 3,
    repeats: int = 20,
    min_seconds: float = 0.5,
    max_seconds: float = 60.0,
    clock: Callable[[], float] | None = None,
) -> dict[str, Latency]:
    """Measure latency in ONNX Runtime, in interleaved rounds as `measure_latency` does.

    Only ONNX Runtime is timed: inputs are converted beforehand, outputs stay numpy arrays. The
    rounds are pairs, so `latency_ratio` compares any two of the results.

    Args:
        models: by name, an `.onnx` file, an open `OnnxRunner`, or a network, which is exported
            into a temporary file first.
        inputs: one batch: a tensor, a tuple of them, or a dict of keyword inputs.
        threads: threads of one operation; None takes as many as PyTorch uses here. A runner that
            is given keeps its own.
        check: whether a network's file is compared with it, as `shoal.export` does.
        warmup: untimed calls of each.
        repeats: number of rounds.
        min_seconds: rounds go on until they took so long together, in seconds.
        max_seconds: no round is started after so many seconds (three are always done).
        clock: returns seconds; by default the machine's best clock.

    Raises:
        ConfigError: a file is missing, or a model cannot be run with these inputs.
        ShoalError: onnxruntime is not installed, or a network cannot be exported.
    """
    size = batch_size(inputs)
    runners = {name: _runner(model, inputs, threads, check) for name, model in models.items()}
    rounds = time_rounds(
        {name: runner.bind(inputs) for name, runner in runners.items()},
        warmup=max(0, warmup - 1),  # binding ran each once
        repeats=repeats,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
        timer=clock_timer(clock) if clock is not None else clock_timer(),
    )
    return {
        name: _latency(rounds.seconds[name], rounds.inner[name], size, runner)
        for name, runner in runners.items()
    }


def _latency(seconds: Sequence[float], inner: int, size: int, runner: OnnxRunner) -> Latency:
    times = tuple(1e3 * s for s in seconds)
    q1, median, q3 = quartiles(times)
    return Latency(median, q1, q3, len(times), inner, size, runner.device, runner.threads, times)


def _runner(
    model: str | Path | nn.Module | OnnxRunner, inputs: Inputs, threads: int | None, check: bool
) -> OnnxRunner:
    if isinstance(model, OnnxRunner):
        return model
    if isinstance(model, nn.Module):
        return OnnxRunner.of(model, inputs, threads=threads, check=check)
    return OnnxRunner(model, threads=threads)


def lacking_package() -> str | None:
    """Return what to install for ONNX Runtime, before any time is spent on exporting."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return str(missing_extra(package, "onnx", "latency in ONNX Runtime"))
    return None


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


def _device_of(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider").lower()


def _array(name: str, tensor: Tensor) -> Any:
    """Return a contiguous numpy array: ONNX Runtime would copy any other on each run."""
    try:
        return tensor.detach().cpu().contiguous().numpy()
    except TypeError as error:  # numpy has no bfloat16
        raise ConfigError(
            f"input '{name}' has type {str(tensor.dtype).removeprefix('torch.')}, which numpy "
            "lacks: export the network in float32 or float16"
        ) from error
