"""`shoal compare`: networks side by side on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show
from shoal.errors import ConfigError
from shoal.user_paths import user_path

_SECONDS, _RUNTIMES = 2.0, "eager,onnxruntime"


# Long because each option of the command is a parameter here.
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="A B …",
            help="Runs' folders, saved networks, or models: torchvision:NAME, timm:NAME, …. The "
            "others are compared with the first, by default on the data of the first run; a run's "
            "twin stands beside it. Or the "
            "folder of one sweep, whose runs are put together over their seeds.",
        ),
    ],
    data: params.Data = None,
    task: params.Task = None,
    checkpoint: Annotated[
        list[Path] | None,
        option("The trained weights of a model; once for each model, in their order.", metavar="F"),
    ] = None,
    batch: Annotated[
        list[int] | None,
        option("Samples per call; may be repeated. Default: 1 and 64.", min=1),
    ] = None,
    seconds: params.Seconds = _SECONDS,
    runtime: params.Runtimes = _RUNTIMES,
    threads: params.Threads = None,
    num_classes: params.NumClasses = None,
    image_size: params.ImageSize = None,
    input_shape: params.InputShape = None,
    device: params.Device = None,
    trust: params.Trust = False,
    form: Annotated[
        str | None,
        option(
            "Of a sweep: markdown, csv, latex or html, instead of a table on the screen. "
            "[dim]Default: as --out ends.[/dim]",
            "--format",
            rich_help_panel="Of a sweep",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option("The file for it.", metavar="FILE", rich_help_panel="Of a sweep"),
    ] = None,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> None:
    """Compare networks: quality, rectifiers left, depth, work, parameters, latency.

    All are timed in turn, round by round. Ratios are against the first with its batch norms folded.

    Of a sweep, whose figures were measured when it ran: mean and deviation over the seeds, the best
    in bold, beside what was published.

    Example: shoal compare shoal:cifar_resnet20 run --checkpoint resnet20.pth
    """
    from shoal.cli.comparing import compared, open_all, open_data, with_twins
    from shoal.cli.comparing_sweeps import refuse_measuring, show_groups
    from shoal.cli.config import run_options, run_task
    from shoal.cli.flags import read_names
    from shoal.cli.source import Source, parse_shape
    from shoal.report import comparison_lines, comparison_tables
    from shoal.runtimes.runtime import open_runtime
    from shoal.search.compress import working_device
    from shoal.search.job_model import random_weights
    from shoal.sweep import is_sweep

    if is_sweep(user_path(models[0])) and len(models) == 1:
        refuse_measuring(
            {
                "--data": data,
                "--task": task,
                "--checkpoint": checkpoint,
                "--batch": batch,
                "--seconds": None if seconds == _SECONDS else seconds,
                "--runtime": None if runtime == _RUNTIMES else runtime,
                "--threads": threads,
                "--num-classes": num_classes,
                "--image-size": image_size,
                "--input-shape": input_shape,
                "--device": device,
                "--trust": trust,
            }
        )
        show_groups(Path(models[0]), form, out, as_json=as_json, verbose=verbose)
        return
    if form is not None or out is not None:
        raise ConfigError("--format and --out are for the folder of one sweep: omit them")
    models, damage = with_twins(models)
    if len(models) < 2:
        raise ConfigError("; ".join(["there is one network: give two or more to compare", *damage]))
    runtimes = read_names("runtime", runtime)
    for name in runtimes:
        open_runtime(name)  # before anything takes its time
    where = working_device(device)
    runs = [run_options(user_path(text)) for text in models]
    source = Source(None, num_classes, image_size, parse_shape(input_shape), trust)
    with progress_console().status("opening") as status:
        loaded, notes = open_data(models, data, image_size, where)
        notes = [*damage, *notes]
        networks, baseline = open_all(models, checkpoint or [], source, loaded, where)
        if not checkpoint and loaded is not None:
            unknown = [text for text in models if random_weights(text, None)]
            notes += [f"{text} has random weights: give --checkpoint" for text in unknown]
        status.update("evaluating and measuring")
        found = compared(
            networks,
            baseline,
            loaded,
            batches=batch or (1, 64),
            seconds=seconds,
            threads=threads,
            runtimes=runtimes,
            notes=notes,
            task=run_task(next(filter(None, runs), {}), task),
        )
    tables, lines = comparison_tables(found), comparison_lines(found)
    show(found.to_dict(), tables, lines, as_json=as_json, verbose=verbose)
