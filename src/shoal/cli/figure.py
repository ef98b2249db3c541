"""`shoal figure`: pictures of what criteria say of a network, and of what runs found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli import params
from shoal.cli.completion import completing
from shoal.cli.params import option
from shoal.cli.screen import is_main_process, progress_console, show

figure = typer.Typer(
    name="figure",
    rich_markup_mode="rich",
    help="Draw what criteria say of a network, and what runs found.",
)

_Out = Annotated[
    Path,
    option(
        "The file to write; its ending, .png, .svg or .pdf, decides the format.", metavar="FILE"
    ),
]
_Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN …",
        help="Folders of runs (--out of shoal compress), or with runs below them, as a sweep's.",
        show_default=False,
    ),
]


@figure.command("l1-by-stage")
def l1_by_stage(
    model: params.Model,
    out: _Out,
    checkpoint: params.Checkpoint = None,
    num_classes: params.NumClasses = None,
    image_size: params.ImageSize = None,
    input_shape: params.InputShape = None,
    trust: params.Trust = False,
) -> None:
    """Draw the mean absolute weight of each block that can go, coloured by stage.

    Where the bars follow the stage, a ranking of all blocks by it picks one stage only:
    rank within stages instead, as the criterion l1 does.

    After Jordao et al. 2023, Figure 3. Needs no data.
    """
    from shoal.cli.source import Source, open_network, parse_shape
    from shoal.extras import figures

    figures.check_path(out)
    source = Source(checkpoint, num_classes, image_size, parse_shape(input_shape), trust)
    network = open_network(model, source)
    if is_main_process():
        figures.l1_by_stage(network, out)
    show(lines=[f"the figure is in '{out}'"])


@figure.command("criteria")
def criteria(
    model: params.Model,
    out: _Out,
    data: Annotated[
        str, option("Data to score on: digits, cifar10:ROOT, folder:ROOT, ….", metavar="D")
    ],
    criteria: Annotated[
        str,
        option(
            "Names with commas between them; options follow a name, as in l1?scope=global. "
            "docs/methods.md lists them.",
            metavar="A,B,…",
            show_default=True,
            autocompletion=completing("criterion"),
        ),
    ] = "random,l1,block_influence,cka,lesion",
    remove: Annotated[
        int, option("How many removals are shown in red.", min=1, show_default=True)
    ] = 3,
    samples: params.Samples = 2000,
    checkpoint: params.Checkpoint = None,
    image_size: params.ImageSize = None,
    mean: params.Mean = None,
    std: params.Std = None,
    seed: params.Seed = 0,
    device: params.Device = None,
    trust: params.Trust = False,
) -> None:
    """Draw which blocks would go first under each criterion, side by side.

    All criteria score the network as it is: one removal and its fine-tuning change the scores.
    """
    from shoal.cli.flags import read_names, read_values
    from shoal.cli.source import Source, open_network, read_data
    from shoal.extras import figures
    from shoal.importance import criterion_for, score_several
    from shoal.search.compress import working_device

    figures.check_path(out)
    names = read_names("criteria", criteria)
    chosen = [criterion_for(name, "block", seed=seed) for name in names]
    where = working_device(device)
    given = {"image_size": image_size, "seed": seed, **read_values(mean=mean, std=std)}
    examples = read_data(data, where, model=model, **given)
    network = open_network(model, Source(checkpoint, trust=trust), examples).to(where)
    with progress_console().status("scoring"):
        found = score_several(network, examples.train, chosen, samples=samples or None)
    scores = dict(zip(names, found, strict=True))
    if is_main_process():
        figures.criteria_map(network, scores, out, remove=remove)
    lines = [f"{name}: {', '.join(own.lowest(remove))}" for name, own in scores.items()]
    show(lines=[*lines, f"the figure is in '{out}'"])


@figure.command("removed")
def removed(
    runs: _Runs,
    out: _Out,
    published: Annotated[
        bool,
        option("Draw what the papers print for the same networks and data beside it."),
    ] = True,
) -> None:
    """Draw quality against the number of removed rectifiers or blocks.

    Each experiment is a line, named by what tells it from the others: model, method, rectifier, ….
    Runs that differ in the seed alone are one line, with a band of one standard deviation.

    After Quétu et al. 2024, Figure 3.
    """
    from shoal.extras import figures

    figures.check_path(out)
    if is_main_process():
        figures.removed(runs, out, printed=published)
    show(lines=[f"the figure is in '{out}'"])


@figure.command("front")
def front(
    runs: _Runs,
    out: _Out,
    against: Annotated[
        str,
        option(
            "What a network costs: its measured latency, or its work in macs.",
            metavar="latency|macs",
            show_default=True,
        ),
    ] = "latency",
) -> None:
    """Draw quality against measured latency, or against work, of all steps of some runs.

    A line joins the steps that no other one of the same experiment beats in both.
    """
    from shoal.extras import figures

    figures.check_path(out)
    if is_main_process():
        figures.front(runs, out, against=against)
    show(lines=[f"the figure is in '{out}'"])


@figure.command("scores")
def scores(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The folder of a run (--out of shoal compress).", show_default=False
        ),
    ],
    out: _Out,
) -> None:
    """Draw what a run's criterion gave each place before each removal, as a heat map.

    Of method easier: the entropy of each rectifier, step by step.
    """
    from shoal.extras import figures

    figures.check_path(out)
    if is_main_process():
        figures.score_map(run, out)
    show(lines=[f"the figure is in '{out}'"])
