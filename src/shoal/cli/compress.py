"""`shoal compress`: the main job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import params
from shoal.cli.completion import completing
from shoal.cli.params import as_flags, option
from shoal.cli.report import show_run
from shoal.cli.screen import Interrupted, is_main_process, progress_console, say

if TYPE_CHECKING:
    from shoal.cli.flags import Flag
    from shoal.search.job import Job


def _show_all(context: typer.Context, wanted: bool) -> None:
    """Show the help with the options that it usually leaves out."""
    if wanted:
        for parameter in context.command.params:
            parameter.__dict__["hidden"] = False
        typer.echo(context.get_help())
        raise typer.Exit


# Long because each option of the command is a parameter here.
def compress(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help=f"{params.MODELS} May stand in --config instead.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        option(
            "The folder for every step and the result. The same command resumes an interrupted "
            "run.",
            metavar="DIR",
        ),
    ],
    data: params.Data = None,
    checkpoint: params.Checkpoint = None,
    pretrained: params.Pretrained = False,
    config: Annotated[
        Path | None,
        option(
            "A YAML file with any of these options (per_step: 2), such as the config.yaml of an "
            "earlier run; flags win over it.",
            metavar="F.yaml",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        option(
            "A set of training options by name: finetune, distill (learn from the dense network), "
            "easier_cifar, easier_domainbed, easier_transfer (the paper's), vit; or auto, which "
            "takes what a paper published for MODEL and D, with epochs and batch size. Flags "
            "change single ones; `shoal recipes` shows all. [dim]Default: the "
            "method's.[/dim]",
            rich_help_panel="Training",
            autocompletion=completing("recipe"),
        ),
    ] = None,
    method: Annotated[
        str | None,
        option(
            "What decides what goes next: shoal (whatever costs least per millisecond it saves "
            "here), easier (linearizes rectifiers, Quétu et al. 2024), layer_pruning (drops "
            "residual blocks, Jordao et al. 2023), egp, lacoot, layer_folding, tlc and others of "
            "docs/methods.md, path/file.py:Name or package.module:Name. "
            "With --help, its own options are shown. [dim]Default: shoal.[/dim]",
            rich_help_panel="Method",
            autocompletion=completing("method"),
        ),
    ] = None,
    task: Annotated[
        str | None,
        option(
            f"{params.TASKS} [dim]Default: classify.[/dim]",
            rich_help_panel="Task",
            autocompletion=completing("task"),
        ),
    ] = None,
    verbose: Annotated[
        bool,
        option("Also show all columns, and what was merged, kept and why.", "--verbose", "-v"),
    ] = False,
    as_json: params.Json = False,
    help_all: Annotated[
        bool,
        option(
            "Show all options; --help shows those that most people need.",
            "--help-all",
            is_eager=True,
            callback=_show_all,
            expose_value=False,
        ),
    ] = False,
    **flags: Any,
) -> None:
    """Make a trained network shallower, as far as its quality allows.

    Layers are removed step by step, with fine-tuning after each step, until
    --max-drop is passed.

    The result is the last network within it; with --final-epochs it is the
    fastest that a last training brings within it. Test data are reported and
    decide nothing.

    Example: shoal compress timm:resnet18 --checkpoint r18.pth --data folder:photos --out run
    """
    from shoal.cli.config import read_job
    from shoal.cli.flags import read_flags

    weights = None if checkpoint is None else str(checkpoint)
    own: dict[str, Any] = {"model": model, "checkpoint": weights, "data": data}
    own |= {"pretrained": pretrained or None}  # a file may ask for it too
    own |= {"recipe": recipe, "method": method, "task": task}
    given = read_flags(compress_flags(method, task), flags)
    run_compress(read_job(config, own | given), out)
    if is_main_process():
        show_run(out, merge=verbose, verbose=verbose, as_json=as_json)


def run_compress(job: Job, out: Path) -> None:
    """Do a job, with the progress on standard error."""
    from shoal.extras.search_energy import meter_of
    from shoal.report.progress import showing
    from shoal.search.job_run import run_job

    meter = meter_of(job)  # what is wrong is said before the data are read
    try:
        with showing(progress_console(), as_flags) as listener:
            run_job(job, out, listener, meter=meter, say=say)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: finished steps are kept in '{out}'; the same command resumes"
        ) from None


def compress_flags(
    method: str | None = None, task: str | None = None, criterion: str | None = None
) -> list[Flag]:
    """Return the flags of `shoal compress`: of all methods and tasks, and of those named here.

    A criterion's options are no flags: they follow its name, and so the help of that tells them.
    """
    import shoal.methods  # noqa: F401  registers them
    from shoal.cli.flags import flags_of
    from shoal.options import DataOptions, Recipe, options_of
    from shoal.search.options import JobOptions, MachineOptions, SearchOptions
    from shoal.search.settings import option_classes, task_classes

    flags = flags_of(
        {
            "Search": {"": SearchOptions},
            "Task": task_classes(task),
            "Method": option_classes(method),
            "Data": {"": DataOptions},
            "Training": {"": Recipe},
            "Machine": {"": MachineOptions},
            "Energy": {"": JobOptions},
        }
    )
    own = {  # of what is named: the short help shows it too
        known.name
        for name, classes in ((method, option_classes), (task, task_classes))
        if name is not None
        for known in options_of(classes(name)[name.partition("?")[0]])
    }
    flags = [replace(f, shown=f.option.common or f.option.name in own) for f in flags]
    flags = [
        replace(flag, default="the recipe's") if flag.panel == "Training" else flag
        for flag in flags
    ]
    if criterion is None:
        return flags
    told = _options_told(criterion)
    return [
        replace(f, option=replace(f.option, help=f"{f.option.help} {told}"), shown=True)
        if f.option.name == "criterion"
        else f
        for f in flags
    ]


def _options_told(criterion: str) -> str:
    """Return in a sentence which options may follow a criterion's name."""
    from shoal.importance.criteria import find_criterion  # with PyTorch: only where it is named
    from shoal.options import options_of

    name = criterion.partition("?")[0]
    known = options_of(find_criterion(criterion)[0].Options)
    if not known:
        return f"'{name}' has no options."
    told = [f"{one.name}: {one.help} Default: {one.text(one.default)}." for one in known]
    return f"Options of '{name}', as in '{name}?{known[0].name}=…': {' '.join(told)}"
