"""`shoal export`: a result as one file for ONNX Runtime or PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.screen import print_json, progress_console, result_console
from shoal.errors import ConfigError

__all__ = ["export"]

_FORMATS = ("onnx", "pt2")


def export(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="The --out folder of a run, or one that shoal.save wrote."
        ),
    ],
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="'onnx' for ONNX Runtime and what reads its files, or 'pt2' for PyTorch. Default: "
            "what --out ends in, else onnx.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file. Default: model.onnx or model.pt2 in DIR.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge/--no-merge",
            help="Export the network merged; else as it was trained, with its batch norms.",
        ),
    ] = True,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Merge anew for this batch size: what is merged is what is faster at it. The file "
            "takes any batch size. Default: of a run, what it has merged; else 1.",
            min=1,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report to standard output as JSON.")
    ] = False,
) -> None:
    """Write a result as one file, and check that the file computes the same.

    It is loaded again and compared with the network at batch 1 and 5; .onnx in ONNX Runtime.

    Example: shoal export run --format onnx
    """
    from shoal.cli.results import open_result, open_trained
    from shoal.measure import depth
    from shoal.runtimes import export as write

    target = _target(folder, form, out)
    if batch is not None and not merge:
        raise ConfigError("--batch is for merging: leave it out, or leave out --no-merge")
    with progress_console().status("exporting"):
        network = open_result(folder, batch) if merge else open_trained(folder)
        report = write(network, target)
    if as_json:
        print_json({**report.to_dict(), "merged": merge, "depth": depth(network)})
        return
    form = "merged" if merge else "as it was trained"
    for line in (str(report), f"the network {form}: {depth(network)} layers deep"):
        result_console().print(line, markup=False, soft_wrap=True)


def _target(folder: str, form: str | None, out: Path | None) -> Path:
    """Return the file to write; raises `ConfigError` where format and file contradict."""
    if form is not None and form not in _FORMATS:
        raise ConfigError(f"format is '{form}': choose onnx or pt2")
    if out is None:
        return Path(folder).expanduser() / f"model.{form or 'onnx'}"
    ending = out.suffix.lower().removeprefix(".")
    if form is not None and ending != form:
        raise ConfigError(f"--format is {form} and --out is '{out}': let it end in .{form}")
    return out
