"""`shoal demo`: everything at once on data that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from shoal.cli import params
from shoal.cli.compress import run_compress
from shoal.cli.params import option
from shoal.cli.report import show_run
from shoal.cli.screen import is_main_process, progress_console
from shoal.display import print_lines
from shoal.user_paths import user_path

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


def demo(
    out: Annotated[
        Path | None,
        option(
            "The folder for the run. Default: shoal-demo in the current folder; with a seed other "
            "than 0, shoal-demo-seedN.",
            metavar="DIR",
        ),
    ] = None,
    seed: params.Seed = 0,
) -> None:
    """Train a small residual network on scikit-learn's digits, and make it shallower and faster.

    It first trains the network of 14 layers, which takes a quarter of a minute.

    Then it does at each step what costs least per millisecond it saves here. It ends when
    more validation accuracy is lost than a last training should win back to 1 point below dense.
    """
    import torch

    from shoal.cli.config import read_job, run_options

    folder = user_path(out or ("shoal-demo" if seed == 0 else f"shoal-demo-seed{seed}"))
    job = read_job(None, {**_OPTIONS, "seed": seed})
    if (folder / "result.json").exists() and run_options(folder) == job.to_dict():
        text = f"'{folder}' holds the finished run: remove the folder to do it again"
        print_lines(progress_console(), text)
    else:
        print_lines(progress_console(), f"the run is in '{folder}'")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # images of 8×8 pixels leave a second core waiting, and in the way
        try:
            run_compress(job, folder)
        finally:
            torch.set_num_threads(threads)
    if is_main_process():
        show_run(folder)
