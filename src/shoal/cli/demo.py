"""`shoal demo`: everything at once on data that need no download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.screen import is_main_process, progress_console

if TYPE_CHECKING:
    from shoal.cli.config import Job

__all__ = ["demo"]

# A third of the digits validates: one point is then five images and not two. fp32, because the
# network is too small for bf16 to gain anything.
_OPTIONS: dict[str, Any] = {
    "model": "shoal:digits_resnet",
    "data": "digits",
    "method": "shoal",
    "tries": 2,
    "step_saving": 0.1,
    "final_epochs": 10,
    "val_fraction": 0.3,
    "batch_size": 64,
    "dense_epochs": 20,
    "epochs": 3,
    "lr": 0.05,
    "distill": 0.7,
    "precision": "fp32",
    "max_drop": 1.0,
}


def _is_finished(folder: Path, job: Job) -> bool:
    """Return whether the folder holds the result of this very job."""
    from shoal.cli.config import run_options

    return run_options(folder) == job.to_dict() and (folder / "result.json").exists()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one core: images of 8×8 pixels leave a second one waiting, and in the way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def demo(
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for the run. Default: shoal-demo, in the current folder; with another "
            "seed than 0, shoal-demo-seedN.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides all that is random.", min=0)] = 0,
) -> None:
    """Train a small residual network on scikit-learn's digits, and make it shallower and faster.

    It trains the network of 14 layers, which takes a quarter of a minute,

    then does at each step what costs least per millisecond it saves on this machine, until more
    than 1 point of validation accuracy is lost.
    """
    from shoal.cli.compress import keep_page, run_compress, show_outcome
    from shoal.cli.config import read_job
    from shoal.report import read_run

    folder = out or Path("shoal-demo" if seed == 0 else f"shoal-demo-seed{seed}")
    job = read_job(None, {**_OPTIONS, "seed": seed})
    console = progress_console()
    if _is_finished(folder, job):
        text = f"'{folder}' holds the finished run: remove the folder to do it again"
        console.print(text, markup=False, soft_wrap=True)
    else:
        console.print(f"the run is in '{folder}'", markup=False, soft_wrap=True)
        with _one_thread():
            run_compress(job, folder)
    if is_main_process():
        record = read_run(folder)
        keep_page(record)
        show_outcome(record)
