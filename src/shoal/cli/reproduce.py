"""`shoal reproduce`: a paper's table or figure, measured here beside what is published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show
from shoal.cli.sweep import (
    FAILED,
    TRIES,
    GpusPerCell,
    Jobs,
    Ray,
    Slurm,
    Threads,
    Tries,
    run_cells,
)
from shoal.errors import ConfigError
from shoal.user_paths import user_path

if TYPE_CHECKING:
    from shoal.reproduce import Merged, Plan
    from shoal.sweep import SweepFolder


# Long because each option of the command is a parameter here.
def reproduce(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="table1, table2, table3, table5 to table11, figure3a, figure3b (Quétu et al. "
            "2024), or lottery (Jordao et al. 2023).",
            show_default=False,
        ),
    ],
    data: Annotated[
        list[str] | None,
        option(
            "A data set with its folder: cifar10:ROOT, pacs:ROOT, …; once for each. Other data may "
            "take its place: cifar10=folder:ROOT, cifar10=digits. Runs without data are left out, "
            "and it is said where to get them.",
            metavar="D",
        ),
    ] = None,
    budget: Annotated[
        float,
        option("Share of the published epochs that each training gets.", show_default=True),
    ] = 1.0,
    model: Annotated[
        list[str] | None,
        option("Only this network, by its name in the table; may be repeated.", metavar="NAME"),
    ] = None,
    method: Annotated[
        list[str] | None, option("Only this method; may be repeated.", metavar="NAME")
    ] = None,
    seed: Annotated[list[int] | None, option("A seed; may be repeated. Default: 0.", min=0)] = None,
    checkpoint: Annotated[
        list[str] | None,
        option(
            "Trained weights for a network, in place of those it would be pretrained with; may be "
            "repeated.",
            metavar="NAME=F",
        ),
    ] = None,
    faithful: Annotated[
        bool,
        option("Compute EASIER's entropies as its published code does: of batches, z = 0 as ON."),
    ] = False,
    config: Annotated[
        Path | None,
        option(
            "A YAML file with options of shoal compress, over those of every run.", metavar="F.yaml"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "The folder of all runs: what is finished there is not run again, and what was "
            "interrupted goes on. Default: the target's name.",
            metavar="DIR",
        ),
    ] = None,
    jobs: Jobs = None,
    threads: Threads = None,
    ray: Ray = None,
    gpus_per_cell: GpusPerCell = None,
    slurm: Slurm = None,
    tries: Tries = TRIES,
    list_only: Annotated[
        bool, option("Only show the cells, as far as they have come; run nothing.", "--list")
    ] = False,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> int:
    """Reproduce a table or figure of the papers, as far as the given data allow.

    Each cell is a run like those of shoal compress, with a folder of its own, which resumes.

    Example: shoal reproduce table1 --data cifar10:DIR --model resnet18_cifar --budget 0.1
    """
    from shoal.reproduce import find_target, plan
    from shoal.sealed import read_options
    from shoal.sweep import SweepFolder

    asked = find_target(target)
    options = {} if config is None else dict(read_options(config))
    weights = _checkpoints(checkpoint or [])
    planned = plan(
        asked,
        data or (),
        budget=budget,
        models=model,
        methods=method,
        seeds=seed or (0,),
        checkpoints=weights,
        faithful=faithful,
        options=options,
    )
    changed = {"config": options, "faithful": faithful, "checkpoint": weights}
    folder = SweepFolder(Path.cwd() / user_path(out or target))
    nothing = not any(planned.cells)
    runs = not (list_only or nothing)
    if runs and asked.figure:
        _check_drawing()
    failed = False
    if runs:
        folder.keep()  # what other calls have run of the target is listed on
        found = run_cells(
            planned.spec,
            folder.path,
            jobs=jobs,
            threads=threads,
            ray=ray,
            gpus_per_cell=gpus_per_cell,
            slurm=slurm,
            tries=tries,
        )
        failed = bool(found.failed)
    _show(planned, folder, changed, verbose, as_json, finish=runs)
    if nothing and not list_only:
        names = " and ".join(planned.missing)
        raise ConfigError(f"no data are given for {target}: get {names} as said above")
    return FAILED if failed else 0


def _check_drawing() -> None:
    """Raise now what would otherwise be found after hours: that matplotlib is not installed."""
    from shoal.extras.figures.canvas import empty_figure

    empty_figure(7.0, 4.0)


def _changes(changed: Mapping[str, Any]) -> list[str]:
    """Return in lines which options the runs had that are not the paper's, and by which flag."""
    from shoal.reproduce.plan import FAITHFUL

    def line(runs: str, options: Mapping[str, Any], flag: str) -> str:
        return f"{runs} had: {', '.join(f'{k}={v}' for k, v in options.items())} ({flag})"

    config = {name: value for name, value in changed["config"].items() if name != "budget"}
    return [
        *([line("every run", config, "--config")] if config else []),
        *(
            [line("every run by easier", {"criterion": FAITHFUL}, "--faithful")]
            if changed["faithful"]
            else []
        ),
        *(
            line(f"every run of {model}", {"checkpoint": file}, "--checkpoint")
            for model, file in changed["checkpoint"].items()
        ),
    ]


def _show(
    planned: Plan,
    folder: SweepFolder,
    changed: Mapping[str, Any],
    verbose: bool,
    as_json: bool,
    *,
    finish: bool,
) -> None:
    """Show what was measured, and then what is made of it, which may fail.

    `changed` is what the user gave in place of the paper's options.
    """
    from shoal.report.reproduce_tables import merged_tables, reproduced_lines, reproduced_table
    from shoal.reproduce import printed_latencies, rows

    target = planned.target
    found = rows(planned, folder)
    published = [cell for one in planned.wanted for cell in one.cells]
    value: dict[str, Any] = {
        "target": target.name,
        "budget": planned.budget,
        "changed": changed,
        "rows": [row.to_dict() for row in found],
        "printed_latencies": [one.to_dict() for one in printed_latencies(published)],
        "missing": dict(planned.missing),
    }
    if not as_json:
        show(tables=[reproduced_table(target, found)], verbose=verbose)
    lines = [
        *_changes(changed),
        *reproduced_lines(target, found, planned.missing, planned.budget),
    ]
    merged: Merged | None = None
    try:
        if finish and target.name == "table3":
            merged = _merged(planned, folder)
            value["merged"] = None if merged is None else merged.to_dict()
        if finish and target.figure and any(row.accuracies for row in found):
            lines.append(f"the figure is in '{_figure(planned, folder)}'")
    finally:
        tables = merged_tables(merged, published)
        show(value, tables, lines, as_json=as_json, verbose=verbose)


def _merged(planned: Plan, folder: SweepFolder) -> Merged | None:
    """Measure the merged networks of the first run of Table 3, if it is done."""
    from rich.markup import escape

    from shoal.reproduce import measure_merged

    done = [state.name for state in folder.read() if state.state == "done"]
    names = [folder.name_of(cell) for cells in planned.cells for cell in cells]
    run = next((name for name in names if name in done), None)
    if run is None:
        return None
    with progress_console().status("merging") as status:
        return measure_merged(folder.run(run), say=lambda text: status.update(escape(text)))


def _figure(planned: Plan, folder: SweepFolder) -> Path:
    from shoal.extras import figures

    names = [folder.name_of(cell) for cells in planned.cells for cell in cells]
    steps = {name: (folder.run(name) / "steps").glob("[0-9]*") for name in names}
    runs = [folder.run(name) for name, found in steps.items() if any(found)]
    return figures.removed(runs, folder.path / f"{planned.target.name}.png")


def _checkpoints(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"checkpoint is '{text}': write NAME=FILE, as in swin_t=swin.pth")
        found[name] = str(user_path(path))
    return found
