"""`shoal compress`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.flags import read_flags, with_config_flags
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

    from shoal.config import Config
    from shoal.data import DataSet
    from shoal.report import RunRecord
    from shoal.search.meter import Meter

__all__ = ["chosen_device", "compress", "keep_page", "run_compress", "show_outcome"]


@with_config_flags
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
    from shoal.config import read_config

    given = {
        "model": model,
        "data": data,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        **read_flags(flags),
    }
    run_compress(read_config(config, given), out)
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


def run_compress(config: Config, out: Path) -> None:
    """Do what a configuration says, with the progress on standard error.

    Raises:
        ShoalError: one line on what is wrong.
        Interrupted: the user pressed Ctrl-C.
    """
    try:
        _compress(config, out)
    except KeyboardInterrupt:
        raise Interrupted.in_run(out) from None


def _compress(config: Config, out: Path) -> None:
    from shoal import methods
    from shoal.cli.progress import showing
    from shoal.cli.source import build, image_channels, is_folder
    from shoal.data import load_data
    from shoal.errors import ConfigError
    from shoal.models import complete_spec

    # Wrong options are told before the data are read.
    options = {**config.search_options(), "recipe": config.training_recipe()}
    methods.make_method(config.method, options)
    meter = _meter(config)
    if is_folder(config.model):
        raise ConfigError(
            f"'{config.model}' is a folder, and compress takes a model: to go on with a run give "
            "its own command again"
        )
    device = chosen_device(config.device)
    data = load_data(config.data, **config.data_options(), device=device)
    spec = complete_spec(
        config.model, num_classes=data.num_classes, in_channels=image_channels(data)
    )
    model = build(spec, config.checkpoint, config.seed)
    console = progress_console()
    _introduce(config, data, device)
    with showing(console) as listener:
        methods.compress(
            model,
            data.train,
            data.val,
            config.method,
            test=data.test,
            out=out,
            base=spec.text,
            device=device,
            listener=listener,
            config=config.model_dump(),
            identity=config.identity(),
            meter=meter,
            **options,
        )


def _meter(config: Config) -> Meter | None:
    from shoal.errors import ConfigError

    if config.energy:
        from shoal.extras.search_energy import SearchEnergy

        return SearchEnergy(config.country)
    if config.country is not None:
        raise ConfigError("country is given without energy: add --energy")
    return None


def chosen_device(name: str | None) -> torch.device:
    """Return the device of that name; None takes a GPU if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    from shoal.search.compress import working_device

    return working_device(name)


def _introduce(config: Config, data: DataSet, device: torch.device) -> None:
    console = progress_console()
    lines = [f"{config.model} on {device}", data.describe(), *(f"note: {n}" for n in data.notes)]
    lines += [f"note: {note}" for note in (*_untrained(config, data), *_coarse(config, data))]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _coarse(config: Config, data: DataSet) -> list[str]:
    """Return what to say where one validation sample decides whether a step is good enough."""
    count = getattr(data.val, "num_samples", None)
    if not count or 100.0 / count <= config.max_drop:
        return []
    return [
        f"with {count} validation samples one is {100.0 / count:.2g} points, more than the "
        f"{config.max_drop:g} of --max-drop: give more of them"
    ]


def _untrained(config: Config, data: DataSet) -> list[str]:
    """Return what to say of a library's model that, wholly or in part, has random weights."""
    from shoal.cli.source import random_weights
    from shoal.models import parse_spec

    if config.checkpoint or config.dense_epochs:
        return []
    if parse_spec(config.model).kind not in ("shoal", "torchvision", "timm"):
        return []
    if random_weights(config.model, config.checkpoint):
        return [
            f"{config.model} begins with random weights: give --checkpoint, or --dense-epochs to "
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
