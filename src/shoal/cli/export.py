"""`shoal export`: a result as one file for ONNX Runtime or PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show
from shoal.errors import ConfigError, OptionError


def export(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="The --out folder of a run, or one that shoal.save wrote."
        ),
    ],
    form: Annotated[
        str | None,
        option(
            "'onnx' for ONNX Runtime and other readers of its files, or 'pt2' for PyTorch. "
            "Default: what --out ends in, else onnx.",
            "--format",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "The file. Default: model.onnx or model.pt2 in DIR; of step 3, model-step3.onnx.",
            metavar="FILE",
        ),
    ] = None,
    step: Annotated[
        int | None,
        option(
            "Of a run, the network of this step in place of the result: shoal report lists those "
            "that are worth it.",
            metavar="N",
            min=0,
        ),
    ] = None,
    merge: Annotated[
        bool,
        option(
            "Export the network merged, or as it was trained, with its batch norms.",
            "--merge/--no-merge",
            show_default=True,
        ),
    ] = True,
    batch: Annotated[
        int | None,
        option(
            "Merge again, for this batch size: what is merged is what is faster at it. The file "
            "takes any batch size. Default: the run's; else 1.",
            min=1,
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        option(
            "Merge again, for this runtime, as --batch does for a batch size. Default: the run's; "
            "else eager.",
            metavar="NAME",
        ),
    ] = None,
    as_json: params.Json = False,
) -> None:
    """Write a result as one file, and check that the file computes the same.

    It is loaded again and compared with the network at batch 1 and 5; .onnx in ONNX Runtime.

    Example: shoal export run --format onnx --step 5
    """
    from shoal.cli.source import open_result, open_trained
    from shoal.measure import depth
    from shoal.runtimes import export as write

    target = _target(folder, form, out, step)
    for flag, given in (("--batch", batch), ("--runtime", runtime)):
        if given is not None and not merge:
            raise ConfigError(f"{flag} is for merging: omit it, or omit --no-merge")
    with progress_console().status("exporting"):
        trained = None if merge else open_trained(folder, step)
        network = trained or open_result(folder, batch, runtime, step)
        report = write(network, target)
    layers = depth(network)
    deep = f"the network {'merged' if merge else 'as it was trained'}: {layers} layers deep"
    value = {**report.to_dict(), "merged": merge, "depth": layers}
    show(value, lines=[str(report), deep], as_json=as_json)


def _target(folder: str, form: str | None, out: Path | None, step: int | None) -> Path:
    if form not in (None, "onnx", "pt2"):
        raise OptionError("format", form, "onnx or pt2")
    if out is None:
        name = "model" if step is None else f"model-step{step}"
        return Path(folder).expanduser() / f"{name}.{form or 'onnx'}"
    ending = out.suffix.lower().removeprefix(".")
    if form is not None and ending != form:
        raise ConfigError(f"--format is {form} and --out is '{out}': let it end in .{form}")
    return out
