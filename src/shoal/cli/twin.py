"""`shoal twin`: the result's architecture, trained from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import params
from shoal.cli.params import as_flags, option
from shoal.cli.screen import Interrupted, is_main_process, progress_console, show
from shoal.display import print_lines
from shoal.errors import ConfigError
from shoal.user_paths import user_path


# Long because each option of the command is a parameter here.
def twin(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of a finished run.")
    ],
    data: params.Data = None,
    task: params.Task = None,
    epochs: Annotated[
        int | None,
        option("Epochs of training. Default: as many as all the run's trainings.", min=1),
    ] = None,
    seed: Annotated[
        int | None, option("Decides the weights and the training. Default: the run's.", min=0)
    ] = None,
    device: params.Device = None,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> None:
    """Train the result's architecture from scratch, for as many epochs as the run spent in all.

    It shows whether the weights that were kept are worth keeping, or the architecture alone is.

    The twin lies in DIR/twin, and the same command resumes it.

    `shoal report DIR` and `shoal compare DIR` show it beside the result.
    """
    from shoal.cli.config import run_options, run_task
    from shoal.cli.source import read_data, run_data
    from shoal.options import DataOptions
    from shoal.report import outcome_lines, read_run, twin_table
    from shoal.report.progress import showing
    from shoal.search.compress import working_device
    from shoal.search.job import data_options
    from shoal.search.twin import twin as train_twin

    run = run_options(user_path(folder))
    where = working_device(device or run.get("device"))
    if data is None and not run and not user_path(folder).is_dir():
        raise ConfigError(f"there is no folder '{folder}': give the --out folder of a run")
    name = run_data(run, data)
    reading = DataOptions.from_dict(data_options(run))
    examples = read_data(name, where, run)
    about = {"model": run.get("model"), "checkpoint": run.get("checkpoint"), "data": name}
    try:
        print_lines(progress_console(), f"the twin of '{folder}' on {where}", examples.describe())
        with showing(progress_console(), as_flags) as listener:
            result = train_twin(
                folder,
                examples.train,
                examples.val,
                test=examples.test,
                epochs=epochs,
                seed=seed,
                task=run_task(run, task),
                device=str(where),
                listener=listener,
                about={**examples.facts(), "data": examples.short_name},
                config={**about, **reading.to_dict()},
                identity={"data": name, **reading.identity()},
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: finished epochs are kept in '{folder / 'twin'}'; the same command "
            "resumes"
        ) from None
    if is_main_process():
        beside = twin_table(read_run(folder), result)
        assert beside is not None  # it was just trained
        lines = [line for line in outcome_lines(result) if line.startswith("note: ")]
        show(result.to_dict(), [beside], lines, as_json=as_json, verbose=verbose)
