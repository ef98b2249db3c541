"""`shoal compress`: the main job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import params
from shoal.cli.completion import completing
from shoal.cli.params import option
from shoal.cli.report import show_run
from shoal.cli.screen import Interrupted, is_main_process, progress_console
from shoal.display import print_lines
from shoal.errors import ConfigError
from shoal.hub import is_on_hub

if TYPE_CHECKING:
    from shoal.cli.config import Job
    from shoal.cli.flags import Flag
    from shoal.data import DataSet


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
            help="resnet50 (of torchvision, else timm), torchvision:NAME, timm:NAME, shoal:NAME, "
            "path/file.py:factory or "
            "package.module:factory; the factory's arguments follow as ?key=value&…. May stand "
            "in --config instead.",
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
            "easier_cifar, easier_domainbed, easier_transfer (the paper's), vit. The flags under "
            "Training change single ones; `shoal recipes` shows their values. [dim]Default: the "
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
            "residual blocks, Jordao et al. 2023), path/file.py:Name or package.module:Name. "
            "With --help, its own options are shown. [dim]Default: shoal.[/dim]",
            rich_help_panel="Method",
            autocompletion=completing("method"),
        ),
    ] = None,
    task: Annotated[
        str | None,
        option(
            "What the network is for, which says what its loss and its quality are: classify "
            "(top-1), multilabel (mAP), binary (one logit, accuracy), regress (R²), segment "
            "(mIoU), path/file.py:Name or package.module:Name. [dim]Default: classify.[/dim]",
            rich_help_panel="Task",
            autocompletion=completing("task"),
        ),
    ] = None,
    energy: Annotated[
        bool | None,
        option(
            "Also report energy and CO2 of the run's training, and of an epoch and 1,000 "
            "inferences of dense and result. An estimate where the machine's counters cannot be "
            "read; the report says so. Needs shoal's extra 'energy'. [dim]Default: no.[/dim]",
            "--energy/--no-energy",
            rich_help_panel="Machine",
            hidden=True,
        ),
    ] = None,
    country: Annotated[
        str | None,
        option(
            "For --energy: three letters, such as DEU, of where the electricity is made, which "
            "decides the CO2. [dim]Default: the world's mean.[/dim]",
            rich_help_panel="Machine",
            hidden=True,
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

    Layers are removed one by one, with fine-tuning after each, until --max-drop
    is passed.

    The result is the last network within it; with --final-epochs it is the
    fastest that a last training brings within it. Test data are reported and
    decide nothing.

    Example: shoal compress timm:resnet18 --checkpoint r18.pth --data folder:photos --out run
    """
    from shoal.cli.config import read_job
    from shoal.cli.flags import read_flags

    weights = None if checkpoint is None else str(checkpoint)
    own = {"model": model, "checkpoint": weights, "data": data, "energy": energy}
    own |= {"pretrained": pretrained or None}  # a file may ask for it too
    own |= {"recipe": recipe, "method": method, "task": task, "country": country}
    given = read_flags(compress_flags(method, task), flags)
    run_compress(read_job(config, own | given), out)
    if is_main_process():
        show_run(out, merge=verbose, verbose=verbose, as_json=as_json)


def run_compress(job: Job, out: Path) -> None:
    """Do a job, with the progress on standard error."""
    from shoal.cli.source import build, is_folder, spec_for
    from shoal.data import load_data
    from shoal.report.progress import showing
    from shoal.search.compress import compress as search
    from shoal.search.compress import method_of, working_device

    meter = None  # what is wrong is said before the data are read
    if job.energy:
        from shoal.extras.search_energy import SearchEnergy

        meter = SearchEnergy(job.country)
    elif job.country is not None:
        raise ConfigError("country is given without energy: add --energy")
    method_of(job.settings)
    if is_on_hub(job.model):
        raise ConfigError(
            f"'{job.model}' is a network that shoal made, merged already: give the model it was "
            "made of"
        )
    if is_folder(job.model):
        raise ConfigError(
            f"'{job.model}' is a folder, and compress takes a model: to continue a run, give its "
            "own command again"
        )
    try:
        device = working_device(job.settings.machine.device)
        data = load_data(job.data, device=device, **job.reading.to_dict())
        spec = spec_for(job.model, data, pretrained=job.pretrained)
        model = build(spec, job.checkpoint, job.reading.seed)
        notes = [f"note: {note}" for note in _notes(job, data)]
        print_lines(progress_console(), f"{job.model} on {device}", data.describe(), *notes)
        with showing(progress_console()) as listener:
            search(
                model,
                data.train,
                data.val,
                job.settings,
                test=data.test,
                out=out,
                base=spec.text,
                about={**data.facts(), "data": data.short_name},
                listener=listener,
                config=job.about(),
                identity=job.identity(),
                meter=meter,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: finished steps are kept in '{out}'; the same command resumes"
        ) from None


def compress_flags(method: str | None = None, task: str | None = None) -> list[Flag]:
    """Return the flags of `shoal compress`: of all methods and tasks, and of those named here."""
    import shoal.methods  # noqa: F401  registers them
    from shoal.cli.flags import flags_of
    from shoal.options import DataOptions, Recipe, options_of
    from shoal.search.options import MachineOptions, SearchOptions
    from shoal.search.settings import option_classes, task_classes

    flags = flags_of(
        {
            "Search": {"": SearchOptions},
            "Task": task_classes(task),
            "Method": option_classes(method),
            "Data": {"": DataOptions},
            "Training": {"": Recipe},
            "Machine": {"": MachineOptions},
        }
    )
    own = {  # of what is named: the short help shows it too
        known.name
        for name, classes in ((method, option_classes), (task, task_classes))
        if name is not None
        for known in options_of(classes(name)[name.partition("?")[0]])
    }
    flags = [replace(f, shown=f.option.common or f.option.name in own) for f in flags]
    return [
        replace(flag, default="the recipe's") if flag.panel == "Training" else flag
        for flag in flags
    ]


def _notes(job: Job, data: DataSet) -> list[str]:
    """Return what to say where one validation sample decides, or weights are random."""
    from shoal.cli.source import new_last_layer, random_weights, weights_advice

    notes = list(data.notes)
    limits = job.settings.search
    count = getattr(data.val, "num_samples", None)
    if count and 100.0 / count > limits.max_drop:
        notes.append(
            f"with {count} validation samples one is {100.0 / count:.2g} points, more than the "
            f"{limits.max_drop:g} of --max-drop: give more of them"
        )
    if limits.dense_epochs:
        return notes
    if random_weights(job.model, job.checkpoint, job.pretrained):
        advice = f"give {weights_advice(job.model)}, or --dense-epochs to train it first"
        notes.append(f"{job.model} has random weights: {advice}")
    elif new_last_layer(job.model, job.checkpoint, data):
        notes.append(
            f"published weights are for other classes than these {data.num_classes}: the last "
            "layer is new, so give --dense-epochs to train it first"
        )
    return notes
