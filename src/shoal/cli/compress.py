"""`shoal compress`: the main job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.flags import Flag, flags_of, read_flags
from shoal.cli.screen import (
    Interrupted,
    is_main_process,
    print_json,
    progress_console,
    result_console,
)
from shoal.errors import ShoalError

if TYPE_CHECKING:
    import torch

    from shoal.cli.config import Job
    from shoal.data import DataSet
    from shoal.report import RunRecord
    from shoal.search.meter import Meter

__all__ = [
    "chosen_device",
    "compress",
    "compress_flags",
    "keep_page",
    "run_compress",
    "show_outcome",
]


def compress(
    *,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="torchvision:NAME, timm:NAME, shoal:NAME, path/file.py:factory or "
            "package.module:factory; the factory's arguments follow as ?key=value&…. May stand "
            "in --config instead.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="The folder for every step and the result. A run that was interrupted goes on "
            "from it when the same command is given again.",
            metavar="DIR",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT (ROOT/train/CLASS/…, and "
            "ROOT/val or ROOT/test), path/file.py:factory or package.module:factory.",
            metavar="D",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="The trained weights: .safetensors, .pt, .pth, .th. Without it the model keeps "
            "the weights it is built with.",
            metavar="F",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file with any of these options (per_step: 2), such as the config.yaml of "
            "an earlier run; flags win over it.",
            metavar="F.yaml",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A set of training options by name: finetune, distill (learn from the dense "
            "network), easier_cifar, easier_domainbed, easier_transfer (the paper's), vit. The "
            "flags under Training change single ones. [dim]Default: the method's.[/dim]",
            rich_help_panel="Training",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="What decides what goes next: shoal (whatever costs least per millisecond it "
            "saves here), easier (linearizes rectifiers, Quétu et al. 2024), layer_pruning (drops "
            "residual blocks, Jordao et al. 2023), path/file.py:Name or package.module:Name. "
            "[dim]Default: shoal.[/dim]",
            rich_help_panel="Method",
            show_default=False,
        ),
    ] = None,
    energy: Annotated[
        bool | None,
        typer.Option(
            "--energy/--no-energy",
            help="Also report energy and CO2 of the run's training, and of an epoch and 1,000 "
            "inferences of dense and result. An estimate where the machine has no counters that "
            "may be read; the report says so. Needs shoal's extra 'energy'. "
            "[dim]Default: no.[/dim]",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    country: Annotated[
        str | None,
        typer.Option(
            help="For --energy: three letters, such as DEU, of where the electricity is made, "
            "which decides the CO2. [dim]Default: the world's mean.[/dim]",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Also show what was merged into what, what was kept and why."
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print result.json to standard output, and nothing else."),
    ] = False,
    **flags: Any,
) -> None:
    """Make a trained network shallower, as far as the accuracy allows.

    Layers are removed one by one, with fine-tuning after each, until --max-drop is passed.

    The result is the last network within it. Test data are reported and decide nothing.

    Example: shoal compress timm:resnet18 --checkpoint r18.pth --data folder:photos --out run
    """
    from shoal.cli.config import read_job

    given = {
        "model": model,
        "data": data,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "recipe": recipe,
        "method": method,
        "energy": energy,
        "country": country,
        **read_flags(compress_flags(method), flags),
    }
    run_compress(read_job(config, given), out)
    if is_main_process():
        _show(out, as_json, verbose)


def _show(out: Path, as_json: bool, verbose: bool) -> None:
    from shoal.report import read_run

    record = read_run(out)
    keep_page(record)
    if as_json:
        print_json(record.to_dict())
    else:
        show_outcome(record, merge=verbose, verbose=verbose)


def keep_page(record: RunRecord) -> None:
    """Write the run's page into its folder, where the extra for that is installed."""
    from shoal.report import write_page

    try:
        write_page(record)
    except ShoalError as error:
        progress_console().print(f"note: {error}", markup=False, soft_wrap=True)


def run_compress(job: Job, out: Path) -> None:
    """Do a job, with the progress on standard error.

    Raises:
        ShoalError: one line on what is wrong.
        Interrupted: the user pressed Ctrl-C.
    """
    try:
        _compress(job, out)
    except KeyboardInterrupt:
        raise Interrupted.in_run(out) from None


def _compress(job: Job, out: Path) -> None:
    from shoal.cli.progress import showing
    from shoal.cli.source import build, image_channels, is_folder
    from shoal.data import load_data
    from shoal.errors import ConfigError
    from shoal.models import complete_spec
    from shoal.search.compress import compress as search

    meter = _meter(job)  # what is wrong is said before the data are read
    if is_folder(job.model):
        raise ConfigError(
            f"'{job.model}' is a folder, and compress takes a model: to continue a run, give its "
            "own command again"
        )
    device = chosen_device(job.settings.machine.device)
    data = load_data(job.data, device=device, **job.reading.to_dict())
    spec = complete_spec(job.model, num_classes=data.num_classes, in_channels=image_channels(data))
    model = build(spec, job.checkpoint, job.reading.seed)
    _introduce(job, data, device)
    with showing(progress_console()) as listener:
        search(
            model,
            data.train,
            data.val,
            job.settings,
            test=data.test,
            out=out,
            base=spec.text,
            listener=listener,
            config=job.about(),
            identity=job.identity(),
            meter=meter,
        )


def compress_flags(method: str | None = None) -> list[Flag]:
    """Return the flags of `shoal compress`: of all methods, and of `method` if it is another."""
    import shoal.methods  # noqa: F401  registers them
    from shoal.options import DataOptions, Recipe
    from shoal.search.options import MachineOptions, SearchOptions
    from shoal.search.settings import option_classes

    flags = flags_of(
        [
            ("Search", {"": SearchOptions}),
            ("Method", option_classes(method)),
            ("Data", {"": DataOptions}),
            ("Training", {"": Recipe}),
            ("Machine", {"": MachineOptions}),
        ]
    )
    return [
        replace(flag, default="the recipe's") if flag.panel == "Training" else flag
        for flag in flags
    ]


def _meter(job: Job) -> Meter | None:
    from shoal.errors import ConfigError

    if job.energy:
        from shoal.extras.search_energy import SearchEnergy

        return SearchEnergy(job.country)
    if job.country is not None:
        raise ConfigError("country is given without energy: add --energy")
    return None


def chosen_device(name: str | None) -> torch.device:
    """Return the device of that name; None takes a GPU if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    from shoal.search.compress import working_device

    return working_device(name)


def _introduce(job: Job, data: DataSet, device: torch.device) -> None:
    console = progress_console()
    lines = [f"{job.model} on {device}", data.describe(), *(f"note: {n}" for n in data.notes)]
    lines += [f"note: {note}" for note in (*_untrained(job, data), *_coarse(job, data))]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _coarse(job: Job, data: DataSet) -> list[str]:
    """Return what to say where one validation sample decides whether a step is good enough."""
    count = getattr(data.val, "num_samples", None)
    if not count or 100.0 / count <= job.settings.search.max_drop:
        return []
    return [
        f"with {count} validation samples one is {100.0 / count:.2g} points, more than the "
        f"{job.settings.search.max_drop:g} of --max-drop: give more of them"
    ]


def _untrained(job: Job, data: DataSet) -> list[str]:
    """Return what to say of a library's model that, wholly or in part, has random weights."""
    from shoal.cli.source import random_weights
    from shoal.models import parse_spec

    if job.checkpoint or job.settings.search.dense_epochs:
        return []
    if parse_spec(job.model).kind not in ("shoal", "torchvision", "timm"):
        return []
    if random_weights(job.model, job.checkpoint):
        return [
            f"{job.model} begins with random weights: give --checkpoint, or --dense-epochs to "
            "train it first"
        ]
    if data.num_classes == 1000:
        return []
    return [
        f"published weights are for other classes than these {data.num_classes}: the last layer is "
        "new, so give --dense-epochs to train it first"
    ]


def show_outcome(record: RunRecord, *, merge: bool = False, verbose: bool = False) -> None:
    """Print the final tables, what was removed, and how the result is loaded.

    Args:
        record: of the run.
        merge: whether to show also what was merged, and what was kept and why.
        verbose: whether to show all columns, however narrow the terminal is.
    """
    from shoal.merge.report import MergeReport
    from shoal.report import (
        comparison_table,
        energy_table,
        latency_table,
        merge_tables,
        outcome_lines,
    )
    from shoal.report.terminal import print_lines, print_table

    latencies = latency_table(record.latency.get("runtimes", []))
    tables = [comparison_table(record), *([] if latencies is None else [latencies])]
    if record.energy:
        tables.append(energy_table(record.energy))
    if merge and record.merge:
        tables += merge_tables(MergeReport.from_dict(record.merge))
    console = result_console()
    for table in tables:
        print_table(console, table, verbose=verbose)
    print_lines(console, [*outcome_lines(record), *_where(record)])


def _where(record: RunRecord) -> list[str]:
    """Return where the networks of the result lie; nothing before there is one."""
    if not record.finished:
        return []
    best, merged = record.folder / "best", record.folder / "merged"
    page = record.folder / "report.html"
    lines = [
        f"the result, to train on, is in '{best}'; in Python: "
        f"net = shoal.load({str(record.folder)!r}, 'best')"
    ]
    if record.merge:
        lines.append(
            f"merged, to use and to export, it is in '{merged}'; as a file: "
            f"shoal export {record.folder}"
        )
    if page.exists():
        lines.append(f"all figures on one page: '{page}'")
    return lines
