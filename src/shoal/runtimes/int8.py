"""Networks in int8: what they are calibrated on, who writes the file, and whether it is good.

No tolerance tells a good int8 network from a bad one. Its answers do: how many are those of the
float network, and what its accuracy is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from shoal.errors import ConfigError, ShoalError, summary
from shoal.files import readable_errors, write_file
from shoal.network import Network
from shoal.network.inputs import (
    Inputs,
    as_call,
    as_inputs,
    batch_size,
    borrowed,
    map_tensors,
    repeat_rows,
    tensors_of,
)
from shoal.passes.batches import Batches
from shoal.runtimes.onnx_runner import FileRunner
from shoal.runtimes.proof import float_type
from shoal.runtimes.runtime import RUNTIMES, Runner, Running, Runtime, find_runtime, installed
from shoal.seeds import derive_seed, preserved_rng, seed_everything

Answers: TypeAlias = Callable[[Any], Tensor | None]
"""Of what a network returned: its answers, `[B, …]`; None where they cannot be counted."""

SAMPLES = 300
"""To calibrate on: as many as NNCF takes by default."""

BATCHES = (1, 5)  # a file is tried at: one sample, and a size that hardly any example has


@dataclass(frozen=True)
class Quantized:
    """A network in int8, written and tried."""

    runner: Runner
    files: tuple[Path, ...]  # the one that is opened first
    checked_batches: tuple[int, ...]  # the batch sizes it was tried at
    samples: int  # that it was calibrated on
    agreement: float | None  # percent of their answers that are the float network's; None if none


def calibration(network: Network, loader: Iterable[Any], samples: int = SAMPLES) -> list[Inputs]:
    """Return the inputs of some samples, in batches, on the CPU.

    Of a loader with `plain()` (shoal's own) they are in stored order and not augmented, and of all
    classes in proportion. Of any other one they are the first that it gives, always the same unless
    it has a generator of its own; the global random state is untouched. Raises `DataError` if there
    are none.
    """
    cpu, names = torch.device("cpu"), network.inputs.parameters
    batches = Batches(loader, cpu, samples=samples, shared=False, purpose="calibrate on")
    with preserved_rng(cpu):
        seed_everything(derive_seed("calibration"), cpu)
        return [as_inputs((batch.args, batch.kwargs), names) for _, batch in batches]


def quantizers() -> list[str]:
    """Return the names of the runtimes here that can quantize, sorted."""
    return [name for name in installed() if RUNTIMES[name].int8]


def quantizer_for(path: Path) -> Runtime:
    """Return the runtime whose int8 files end as `path` does; `ConfigError` if there is none."""
    endings = {RUNTIMES[name].int8: name for name in RUNTIMES.names() if RUNTIMES[name].int8}
    if path.suffix not in endings:
        known = " or ".join(f"{ending} ({name})" for ending, name in sorted(endings.items()))
        raise ConfigError(f"'{path}' does not say the runtime for int8: let it end in {known}")
    return find_runtime(endings[path.suffix])


def quantize(
    network: Network,
    samples: Sequence[Inputs],
    path: Path,
    runtime: Runtime,
    answers: Answers | None = None,
) -> Quantized:
    """Write a network in int8, try the file at batch 1 and 5, and compare its answers.

    The file gets its name when all of this has been done. `answers` finds what a network answers in
    what it returned; by default that is the place of the largest value along dimension 1 of the
    first output, for a network that says of no other task that it is its own.

    Raises:
        ShoalError: the runtime cannot quantize the network, or the file cannot be run.
    """
    if float_type(network) != torch.float32:
        raise ShoalError("a network is quantized from float32: convert it by network.float()")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        runner = runtime.quantize(network, samples, made)
        _try(network, runner, samples, path)
        found = answers or (_largest if _is_classifier(network) else _none)
        agreement = _agreement(network, runner, samples, found)
        with readable_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        others = sorted(file for file in made.parent.iterdir() if file != made)
        for file in (*others, made):
            write_file(path.with_name(file.name), _copier(file))
    if isinstance(runner, FileRunner):
        runner.path = path  # what it tells of is where the file lies now
    files = (path, *(path.with_name(file.name) for file in others))
    return Quantized(runner, files, BATCHES, sum(map(batch_size, samples)), agreement)


def _copier(file: Path) -> Callable[[Path], None]:
    def copy(target: Path) -> None:
        shutil.copyfile(file, target)

    return copy


def _try(network: Network, runner: Runner, samples: Sequence[Inputs], path: Path) -> None:
    for size in BATCHES:
        args, kwargs = as_call(map_tensors(partial(repeat_rows, size=size), samples[0]))
        try:
            outputs = tensors_of(runner(*args, **kwargs))
        except ShoalError as error:
            raise ShoalError(
                f"'{path}' was not written: in int8 the network cannot be run at batch {size} "
                f"({error}): stay with float32"
            ) from error
        with borrowed(network, device=torch.device("cpu")) as lent, torch.inference_mode():
            own = tensors_of(lent(*args, **kwargs))  # a mask may make some of them infinite
        broken = (a.isfinite() & ~b.isfinite() for a, b in zip(own, outputs, strict=True))
        if any(bool(places.any()) for places in broken):
            raise ShoalError(
                f"'{path}' was not written: in int8 the network gives values that are not finite: "
                "stay with float32"
            )


def _is_classifier(network: Network) -> bool:
    """Whether the largest output is the answer, as far as a network says what it is for."""
    return str(network.meta.get("task", "classify")).partition("?")[0] in ("classify", "segment")


def _largest(returned: Any) -> Tensor | None:
    values = tensors_of(returned)
    # Of one value, the place of the largest is the same whatever it is.
    several = values and values[0].dim() > 1 and values[0].shape[1] > 1
    return values[0].argmax(1) if several else None


def _none(returned: Any) -> None:
    return None


def _agreement(
    network: Network, runner: Runner, samples: Sequence[Inputs], answers: Answers
) -> float | None:
    """Return in how many percent of the answers a network and its int8 form agree."""
    same, total, small = 0, 0, Running(runner, network)
    with borrowed(network, device=torch.device("cpu")) as lent, torch.inference_mode():
        for args, kwargs in map(as_call, samples):
            both = lent(*args, **kwargs), small(*args, **kwargs)
            try:
                given, found = map(answers, both)
            except ShoalError:
                raise
            except Exception as error:  # answers= is the user's own
                raise ShoalError(f"its answers cannot be told: {summary(error)}") from error
            if given is None or found is None:
                return None
            same, total = same + int((given == found).sum()), total + given.numel()
    return 100.0 * same / total if total else None
