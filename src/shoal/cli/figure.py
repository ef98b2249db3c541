"""`shoal figure`: pictures of what criteria say of a network's blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.screen import is_main_process, progress_console, result_console

__all__ = ["figure"]

_CRITERIA = "random,l1,block_influence,cka,lesion"

figure = typer.Typer(
    name="figure",
    rich_markup_mode="rich",
    help="Draw what criteria say of a network's residual blocks.",
)

_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME, timm:NAME, shoal:NAME, path/file.py:factory, "
        "package.module:factory, or a folder that shoal wrote.",
    ),
]
_Out = Annotated[
    Path,
    typer.Option(
        help="The file to write; its ending, .png, .svg or .pdf, decides the format.",
        metavar="FILE",
    ),
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option(help="The trained weights.", metavar="F", show_default=False),
]
_ImageSize = Annotated[
    int | None,
    typer.Option(
        help="Height and width of the image, in pixels. Default: what the model usually takes.",
        show_default=False,
    ),
]


@figure.command("l1-by-stage")
def l1_by_stage(
    model: _Model,
    out: _Out,
    checkpoint: _Checkpoint = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Outputs of the classifier, where MODEL does not tell.",
                     show_default=False),
    ] = None,
    image_size: _ImageSize = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="The shape of one sample, such as 3,32,32, for a model that takes another one "
            "than usual.",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Draw the mean absolute weight of each block that can go, coloured by stage.

    Where the bars follow the stage, a ranking of all blocks by it picks one stage only:
    rank within stages instead, as the criterion l1 does.

    After Jordao et al. 2023, Figure 3. Needs no data.
    """
    from shoal.cli.source import Source, open_network, parse_shape
    from shoal.extras import figures

    figures.check_path(out)
    source = Source(checkpoint, num_classes, image_size, parse_shape(input_shape))
    network = open_network(model, source)
    if is_main_process():
        figures.l1_by_stage(network, out)
    _say_written(out)


@figure.command("criteria")
def criteria(
    model: _Model,
    out: _Out,
    data: Annotated[
        str,
        typer.Option(
            help="Data whose training images are scored on: digits, cifar10:ROOT, folder:ROOT, ….",
            metavar="D",
        ),
    ],
    criteria: Annotated[
        str,
        typer.Option(
            help="Names with commas between them; options follow a name, as in l1?scope=global. "
            "docs/methods.md lists them.",
            metavar="A,B,…",
        ),
    ] = _CRITERIA,
    remove: Annotated[
        int, typer.Option(help="How many removals are shown in red.", min=1)
    ] = 3,
    samples: Annotated[
        int, typer.Option(help="Score on so many training images; 0 takes all.", min=0)
    ] = 2000,
    checkpoint: _Checkpoint = None,
    image_size: _ImageSize = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="What is subtracted from each channel, of pixels from 0 to 1. Take what the "
            "network was trained with. Default: the data's own.",
            metavar="A,B,…",
            show_default=False,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            help="What each channel is divided by, as --mean.", metavar="A,B,…", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Decides the samples and the criterion random.", min=0)
    ] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="Where to work. Default: a GPU if there is one.", show_default=False),
    ] = None,
) -> None:  # fmt: skip
    """Draw which blocks would go first under each criterion, side by side.

    All criteria score the network as it is: one removal and its fine-tuning change the scores.
    """
    from shoal.cli.compress import chosen_device
    from shoal.cli.flags import read_values
    from shoal.cli.source import Source, open_network
    from shoal.data import load_data
    from shoal.extras import figures
    from shoal.importance import criterion_for, score_several

    figures.check_path(out)
    names = _names(criteria)
    chosen = [criterion_for(name, "block", seed=seed) for name in names]
    where = chosen_device(device)
    given = {"image_size": image_size, "seed": seed, **read_values(mean=mean, std=std)}
    examples = load_data(data, device=where, **given)
    network = open_network(model, Source(checkpoint), examples).to(where)
    with progress_console().status("scoring"):
        found = score_several(network, examples.train, chosen, samples=samples or None)
    scores = dict(zip(names, found, strict=True))
    if is_main_process():
        figures.criteria_map(network, scores, out, remove=remove)
    console = result_console()
    for name, own in scores.items():
        order = ", ".join(own.lowest(remove))
        console.print(f"{name}: {order}", markup=False, soft_wrap=True)
    _say_written(out)


def _names(text: str) -> list[str]:
    """Return the names between the commas, each once.

    Raises:
        ConfigError: there is none.
    """
    from shoal.errors import ConfigError

    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ConfigError(f"criteria is '{text}': give names with commas between them, as l1,cka")
    return names


def _say_written(path: Path) -> None:
    result_console().print(f"the figure is in '{path}'", markup=False, soft_wrap=True)
