"""`shoal export`: a result as one file for ONNX Runtime or PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import params
from shoal.cli.completion import completing
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show
from shoal.errors import ConfigError, OptionError
from shoal.hub import is_on_hub
from shoal.user_paths import user_path

if TYPE_CHECKING:
    from shoal.data import DataSet
    from shoal.network import Network
    from shoal.runtimes import ExportReport
    from shoal.tasks import Task


# Long because each option of the command is a parameter here.
def export(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="The --out folder of a run, one that shoal.save wrote, or hf:ORG/NAME.",
        ),
    ],
    form: Annotated[
        str | None,
        option(
            "'onnx' for ONNX Runtime and other readers of its files, 'pt2' for PyTorch, or with "
            "--int8 'xml' for OpenVINO. Default: what --out ends in, else onnx.",
            "--format",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "The file. Default: model.onnx or model.pt2 in DIR, of hf: here; of step 3, "
            "model-step3.onnx; in int8, model-int8.onnx.",
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
            autocompletion=completing("runtime"),
        ),
    ] = None,
    int8: Annotated[
        bool,
        option(
            "Write the network in int8, calibrated on training images of --data, and report its "
            "accuracy beside the network's. .onnx is for ONNX Runtime, .xml for OpenVINO.",
            "--int8",
        ),
    ] = False,
    data: params.Data = None,
    task: params.Task = None,
    trust: params.Trust = False,
    as_json: params.Json = False,
) -> None:
    """Write a result as one file, and check that the file computes the same.

    It is loaded again and compared with the network at batch 1 and 5; .onnx in ONNX Runtime.

    Example: shoal export run --format onnx --step 5
    """
    from shoal.cli.config import run_options, run_task
    from shoal.cli.source import open_result, open_trained
    from shoal.measure import depth
    from shoal.report import task_lines
    from shoal.runtimes import export as write

    target = _target(folder, form, out, step, int8)
    if data is not None and not int8:
        raise ConfigError("--data is for --int8: add it, or omit --data")
    if task is not None and not int8:
        raise ConfigError("--task is for --int8: add it, or omit --task")
    images = _images(folder, data) if int8 else None
    # A run whose task is code of the user's is exported without it: only int8 asks for the task.
    goal = run_task(run_options(user_path(folder)) if int8 else {}, task)
    for flag, given in (("--batch", batch), ("--runtime", runtime)):
        if given is not None and not merge:
            raise ConfigError(f"{flag} is for merging: omit it, or omit --no-merge")
    with progress_console().status("exporting"):
        trained = None if merge else open_trained(folder, step, trust=trust)
        network = trained or open_result(folder, batch, runtime, step, trust=trust)
        report = write(
            network,
            target,
            int8=None if images is None else images.train,
            answers=lambda returned: goal.answers(goal.output(returned)),
        )
        found = _qualities(network, report, images, goal) if images is not None else {}
    layers = depth(network)
    deep = f"the network {'merged' if merge else 'as it was trained'}: {layers} layers deep"
    value = {**report.to_dict(), "merged": merge, "depth": layers, **found}
    lines = [
        str(report),
        deep,
        *task_lines(network.meta),
        *(_points(goal, part, *both) for part, both in found.items()),
    ]
    show(value, lines=lines, as_json=as_json)


def _images(folder: str, asked: str | None) -> DataSet:
    """Return the data to calibrate and to evaluate on: by default a run's own."""
    import torch

    from shoal.cli.config import run_options
    from shoal.cli.source import read_data, run_data

    run = run_options(user_path(folder))
    return read_data(run_data(run, asked), torch.device("cpu"), run, model=folder)


def _qualities(
    network: Network, report: ExportReport, images: DataSet, task: Task
) -> dict[str, tuple[float, float]]:
    """Return the quality of the network and of the file in points, by part of the data."""
    from shoal.runtimes import Running
    from shoal.training import evaluate

    assert report.runner is not None  # in int8 there is one
    both = (network, Running(report.runner, network))
    parts = {"top1_val": images.val, "top1_test": images.test}
    return {
        name: (
            evaluate(both[0], part, task=task).quality,
            evaluate(both[1], part, task=task).quality,
        )
        for name, part in parts.items()
        if part is not None
    }


def _points(task: Task, part: str, before: float, after: float) -> str:
    from shoal.report.table import UNITS, points, unit_of

    name = {"top1_val": "validation", "top1_test": "test"}[part]
    change = points(after - before)
    shown = UNITS[unit_of(task.quality_unit)]
    both = f"{shown(before)} as float, {shown(after)} in int8 ({change})"
    return f"{task.quality_name} {name}: {both}"


def _target(folder: str, form: str | None, out: Path | None, step: int | None, int8: bool) -> Path:
    if form not in (None, "onnx", "pt2", "xml"):
        raise OptionError("format", form, "onnx, pt2 or xml")
    if out is None:
        name = "model" if step is None else f"model-step{step}"
        name += "-int8" if int8 else ""
        place = Path() if is_on_hub(folder) else user_path(folder)
        return place / f"{name}.{form or 'onnx'}"
    ending = out.suffix.lower().removeprefix(".")
    if form is not None and ending != form:
        raise ConfigError(f"--format is {form} and --out is '{out}': let it end in .{form}")
    return out
