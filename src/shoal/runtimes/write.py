"""Write a network as one `.onnx` or `.pt2` file, and prove that the file computes the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, OptionError, ShoalError
from shoal.files import readable_errors, write_file
from shoal.network import Network
from shoal.network.agreement import compare_outputs, random_like
from shoal.network.inputs import Inputs, borrowed, first_line
from shoal.quiet import quietly
from shoal.runtimes.int8 import BATCHES, Answers, calibration, quantize, quantizer_for
from shoal.runtimes.onnx_file import opset_of, root_cause
from shoal.runtimes.onnx_runner import OnnxRunner
from shoal.runtimes.program import Example, called_program, outputs_of, prepare
from shoal.runtimes.proof import TOLERANCES, float_type
from shoal.runtimes.runtime import Runner
from shoal.runtimes.translated import told, translated
from shoal.user_paths import user_path

Run: TypeAlias = Callable[..., list[Tensor]]
"""From the example's tensors to all tensors given out."""


@dataclass(frozen=True, repr=False)
class ExportReport:
    """What was written, and how well it agrees with the network."""

    path: str
    format: str  # "onnx" or "pt2"
    bytes: int  # the file's size
    inputs: tuple[str, ...]  # names, in order; dimension 0 of each is the batch, of any size
    outputs: tuple[str, ...]  # names, in order
    opset: int | None  # the version of ONNX's operators; None for .pt2
    # The largest, over outputs and checks, of max |file - network| / max |network|; None if it was
    # not checked, and in int8
    max_rel_error: float | None
    tolerance: float | None  # the largest relative error that was allowed; None in int8
    checked_batches: tuple[int, ...]  # the batch sizes it was checked at
    seconds: float  # how long exporting and checking took
    precision: str = "float"  # or "int8"
    samples: int = 0  # that int8 was calibrated on
    # In int8, percent of the answers for these samples that are the network's; None where it gives
    # none that can be counted
    agreement: float | None = None
    runner: Runner | None = field(default=None, repr=False, compare=False)  # of a file in int8

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain JSON-ready values."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        del values["runner"]
        return values

    def __repr__(self) -> str:
        """Return the outcome in one line."""
        return f"<export: {self}>"

    def __str__(self) -> str:
        proof, opset = "not checked", f", opset {self.opset}" if self.opset is not None else ""
        if self.max_rel_error is not None:
            sizes = " and ".join(map(str, self.checked_batches))
            proof = f"relative error {self.max_rel_error:.1e} at batch {sizes}"
        if self.precision == "int8":
            proof = f"int8, calibrated on {self.samples} samples"
        if self.agreement is not None:
            proof += f", {self.agreement:.1f} % of the answers are the network's"
        return f"{self.path}: {self.bytes / 1e6:.2f} MB{opset}, {proof}"


# Long because each of its arguments is explained; the body is short.
@torch.inference_mode(False)  # which a caller may be in, and whose tensors cannot be traced
@torch.no_grad()
def export(
    network: nn.Module,
    path: str | Path,
    example_inputs: Inputs | None = None,
    *,
    check: bool = True,
    opset: int | None = None,
    tolerance: float | None = None,
    int8: Iterable[Any] | None = None,
    answers: Answers | None = None,
) -> ExportReport:
    """Write a network as one file, `.onnx` or `.pt2`, for any batch size.

    The file holds the network in eval mode, for the CPU, without what acts only in training.
    Before it gets its name it is loaded again and its outputs are compared with the network's, at
    batch 1 and 5, on the example and on random inputs like it; `.onnx` also goes through ONNX's
    own checker. The network is left as it was.

    What goes with the network (`meta`: class names, normalisation, task, figures) and the shape of
    a sample are in the file too, as JSON: in `.onnx` as metadata under `shoal.classes` and so on,
    in `.pt2` as the extra file `shoal.json`.

    Args:
        network: a captured network, or a module, which is captured first.
        path: ends in `.onnx` (needs the extra "onnx") or in `.pt2`.
        example_inputs: a tensor, a tuple of them, or a dict of keyword inputs, at least one
            sample; None takes random ones of the captured shapes.
        check: compare the file with the network.
        opset: the version of ONNX's operators; None takes PyTorch's choice.
        tolerance: the largest relative error allowed; by default 1e-4 in float32, 1e-10 in
            float64, 1e-2 in float16 and 5e-2 in bfloat16.
        int8: batches of training data, without augmentation: the file is then of int8, calibrated
            on 300 of their samples, and its name says for which runtime: `.onnx` for ONNX Runtime,
            `.xml` (with a `.bin` beside it) for OpenVINO. Its answers are compared with the
            network's on these samples; no tolerance applies. A network is to be merged before.
        answers: for int8, finds the answers in what the network returned, whole numbers [B, …] or
            None; by default the place of the largest value along dimension 1 of the first output,
            and none for a network whose task has other answers.

    Returns:
        What was written and the error that was found.

    Raises:
        ConfigError: the suffix or an option makes no sense, or the inputs are not the network's.
        FileError: the file cannot be written.
        ShoalError: the network cannot be written in this format, or the file computes something
            else; then no file is left behind, and an older one of that name stays.

    Example:
        >>> import shoal, tempfile, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = shoal.export(model, f"{folder}/model.pt2", torch.randn(2, 4))
        >>> report.inputs, report.max_rel_error <= report.tolerance
        (('input',), True)
    """
    start = time.perf_counter()
    path = user_path(path)
    if int8 is not None:
        if opset is not None or tolerance is not None:
            raise ConfigError("opset= and tolerance= are not for int8: leave them out")
        net, example = prepare(network, example_inputs)
        return _export_int8(net, example, path, int8, answers, start)
    form = _format_of(path, opset)
    net, example = prepare(network, example_inputs)
    allowed = TOLERANCES[float_type(net)] if tolerance is None else tolerance
    if not allowed >= 0:
        raise OptionError("tolerance", tolerance, "the largest relative error allowed, from 0")
    made = _to_onnx(net, example, opset) if form == "onnx" else _to_pt2(net, example)
    errors: list[float] = []

    def write(temporary: Path) -> None:
        made.write(temporary)
        try:
            if check:
                errors.append(_verify(net, example, made.load(temporary), allowed, path))
        except ShoalError as error:  # in the user's words: they never see the temporary name
            raise type(error)(str(error).replace(str(temporary), str(path))) from error

    with readable_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
    return ExportReport(
        path=str(path),
        format=form,
        bytes=path.stat().st_size,
        inputs=example.names,
        outputs=made.outputs,
        opset=made.opset,
        max_rel_error=errors[0] if errors else None,
        tolerance=allowed,
        checked_batches=BATCHES if check else (),
        seconds=time.perf_counter() - start,
    )


def _export_int8(
    network: Network,
    example: Example,
    path: Path,
    data: Iterable[Any],
    answers: Answers | None,
    start: float,
) -> ExportReport:
    runtime = quantizer_for(path)
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder: give the name of a file")
    made = quantize(network, calibration(network, data), path, runtime, answers)
    return ExportReport(
        path=str(path),
        format=path.suffix.removeprefix("."),
        bytes=sum(file.stat().st_size for file in made.files),
        inputs=example.names,
        outputs=outputs_of(network, example),
        opset=None,
        max_rel_error=None,
        tolerance=None,
        checked_batches=made.checked_batches,
        seconds=time.perf_counter() - start,
        precision="int8",
        samples=made.samples,
        agreement=made.agreement,
        runner=made.runner,
    )


# ---------------------------------------------------------------------- what is asked


def _format_of(path: Path, opset: int | None) -> str:
    form = path.suffix.lower().removeprefix(".")
    if form == "xml":
        raise ConfigError(
            f"'{path}': .xml is for int8 in OpenVINO: add --int8 (int8= in Python), or let it "
            "end in .onnx, which OpenVINO reads too"
        )
    if form not in ("onnx", "pt2"):
        raise ConfigError(
            f"'{path}' does not say the format: give a file name that ends in .onnx or .pt2"
        )
    if path.is_dir():
        raise ConfigError(f"'{path}' is a folder: give the name of a file")
    if opset is not None and (form == "pt2" or opset < 1):
        raise ConfigError(f"opset={opset} makes no sense for '{path}': leave it out")
    return form


# ---------------------------------------------------------------------- the two formats


@dataclass(frozen=True)
class _Made:
    """A network in the form of a file, not yet written; `load` opens the file."""

    write: Callable[[Path], object]
    load: Callable[[Path], Run]
    outputs: tuple[str, ...]
    opset: int | None = None


def _to_onnx(network: Network, example: Example, opset: int | None) -> _Made:
    model = translated(network, example, opset)
    content: bytes = model.SerializeToString()

    def load(path: Path) -> Run:
        import onnx

        try:
            onnx.checker.check_model(str(path), full_check=True)
        except Exception as error:  # its errors have no common class
            raise ShoalError(
                f"ONNX's checker refuses the exported network ({first_line(error)}): export to .pt2"
            ) from error
        runner = OnnxRunner(path)
        return lambda *tensors: runner.run(runner.feed(*tensors))

    names = tuple(value.name for value in model.graph.output)
    return _Made(lambda path: path.write_bytes(content), load, names, opset_of(model))


def _to_pt2(network: Network, example: Example) -> _Made:
    outputs, program = outputs_of(network, example), called_program(network, example)
    beside = {"shoal.json": json.dumps(told(network, example), ensure_ascii=False)}

    def write(path: Path) -> None:
        try:
            with path.open("wb") as file, quietly():
                torch.export.save(program, file, extra_files=beside)
        except NotImplementedError as error:  # of a container of the model's own among the inputs
            raise ShoalError(
                f"torch.export cannot write the network's inputs to a .pt2 file "
                f"({first_line(error)}): export to .onnx"
            ) from error

    def load(path: Path) -> Run:
        with path.open("rb") as file, quietly():
            return example.flat(torch.export.load(file).module())

    return _Made(write, load, outputs)


# ---------------------------------------------------------------------- the proof


def _verify(net: Network, example: Example, found: Run, allowed: float, path: Path) -> float:
    """Return the largest relative error of the written file; raises `ShoalError` if too large."""
    worst = 0.0
    with borrowed(net, device=torch.device("cpu")) as lent:
        expected = example.flat(lent)
        for size in BATCHES:
            tensors = example.with_batch(size).tensors
            both = [tensors, random_like(tensors)]
            try:
                agreement = compare_outputs(expected, found, both, device="cpu")
            except ConfigError as failure:
                raise ShoalError(
                    f"'{path}' was not written: the exported network cannot be run at batch "
                    f"{size} ({root_cause(failure)}): another format may do"
                ) from failure
            what = agreement.fault(allowed)
            if what:
                raise ShoalError(
                    f"'{path}' was not written: at batch {size} it computes something else than "
                    f"the network ({what}): use float32, or set tolerance= if that is close enough"
                )
            worst = max(worst, agreement.max_rel_error)
    return worst
