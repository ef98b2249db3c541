"""`shoal sweep`: many runs from one file; and the options of every command that runs cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import Interrupted, progress_console, show
from shoal.display import counted, to_type

if TYPE_CHECKING:
    from shoal.sweep import Sweep

FAILED = 3
"""The exit code of a sweep of which a cell failed."""

_BARE = {"--ray": "local", "--slurm": ""}
"""What these flags stand for where nothing follows them."""


def with_bare_flags(words: Sequence[str]) -> list[str]:
    """Return the words of a command line in which `--ray` and `--slurm` may stand alone.

    Example:
        >>> with_bare_flags(["sweep", "--ray", "a.yaml", "--slurm"])
        ['sweep', '--ray=local', 'a.yaml', '--slurm=']
    """
    told = list(words)
    for place, (word, following) in enumerate(pairwise([*words, "--"])):
        if word in _BARE and (following.startswith("-") or _is_argument(words[0], following)):
            told[place] = f"{word}={_BARE[word]}"
    return told


def _is_argument(command: str, word: str) -> bool:
    """Whether a word is what the command runs, not an address of Ray or parameters of Slurm."""
    if command == "reproduce":
        from shoal.reproduce import targets

        return word in targets
    return word.endswith((".yaml", ".yml"))


# ---------------------------------------------------------------------- where cells run

Jobs = Annotated[
    int | None,
    option(
        "Cells that run at a time. Default: 1; on Ray and Slurm as many as there is room for.",
        "--jobs",
        "-j",
        min=1,
    ),
]
Threads = Annotated[
    int | None,
    option(
        "Threads of each cell on the CPU. Default: the cores divided by --jobs; on a Ray "
        "cluster 1, on Slurm what it gives.",
        min=1,
    ),
]
Ray = Annotated[
    str | None,
    option(
        "Run on Ray: without an address on a Ray of its own in this machine, else on the "
        "cluster at that address, whose machines see the folder and the data under the same "
        "paths.",
        metavar="[ADDRESS]",
    ),
]
GpusPerCell = Annotated[
    float | None,
    option("The share of a GPU that each cell gets on Ray. Default: 1 where there is a GPU."),
]
Slurm = Annotated[
    str | None,
    option(
        "Run on Slurm, each cell as a job of its own, with submitit's parameters if need be: "
        "'partition=gpu&timeout_min=120&gpus_per_node=1'.",
        metavar="[KEY=VALUE&…]",
    ),
]
Tries = Annotated[
    int,
    option("How often a cell is started whose process dies.", min=1, show_default=True),
]
TRIES = 3
"""How often that is, by default."""


def run_cells(
    spec: Path | Mapping[str, Any], out: Path | None, *, slurm: str | None, **where: Any
) -> Sweep:
    """Run a sweep under a table that moves; `slurm` and `where` are the options above.

    Raises:
        Interrupted: the user pressed Ctrl-C.
        ShoalError: one line on what is wrong, before anything is run.
    """
    from shoal.report.sweep_progress import showing
    from shoal.sweep import sweep as run
    from shoal.targets import parse_keywords

    parameters = None if slurm is None else parse_keywords(slurm)
    try:
        with showing(progress_console()) as listener:
            return run(spec, out, slurm=parameters, listener=listener, **where)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted: finished steps are kept; the same command resumes"
        ) from None


# Long because each option of the command is a parameter here.
def sweep(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="F.yaml",
            help="The options of `shoal compress` by name (per_step: 2); a list means each of its "
            "values, and the cells are all combinations.",
        ),
    ],
    out: Annotated[
        Path | None,
        option(
            "The sweep's folder: what is finished there is not run again, and what was "
            "interrupted goes on. Default: the file's name without its ending.",
            metavar="DIR",
        ),
    ] = None,
    jobs: Jobs = None,
    threads: Threads = None,
    ray: Ray = None,
    gpus_per_cell: GpusPerCell = None,
    slurm: Slurm = None,
    tries: Tries = TRIES,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> int:
    """Run a matrix of methods, models, data sets, seeds and any option of `shoal compress`.

    Each cell is a run with a folder of its own, which resumes. A cell that fails does not stop the
    others; the table says why, and the exit code is 3.

    Example: shoal sweep comparison.yaml --jobs 2
    """
    from shoal.report.sweep_tables import cells_table, count_words

    found = run_cells(
        file,
        out,
        jobs=jobs,
        threads=threads,
        ray=ray,
        gpus_per_cell=gpus_per_cell,
        slurm=slurm,
        tries=tries,
    )
    lines = [f"{counted(len(found.cells), 'cell')}: {count_words(found.cells)}"]
    if found.failed:
        logs = found.folder / "logs"
        lines.append(f"what the failed cells said is in '{logs}'; the same command tries again")
    lines.append("put together over the seeds:" + to_type("compare", out or file.stem))
    show(found.to_dict(), [cells_table(found.cells)], lines, as_json=as_json, verbose=verbose)
    return FAILED if found.failed else 0
