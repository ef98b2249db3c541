"""Parameters that several commands take, each stated once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def option(help: str, *names: str, **more: Any) -> Any:
    """Return a command's option; `show_default=True` shows its default in the help."""
    return typer.Option(*names, help=help, **{"show_default": False, **more})


_MODEL = (
    "torchvision:NAME, timm:NAME, shoal:NAME, path/file.py:factory, package.module:factory, or a "
    "folder that shoal wrote."
)
_CHANNELS = "Default: the run's, else the data's own."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL)]
Checkpoint = Annotated[
    Path | None,
    option(
        "The trained weights of MODEL: .safetensors, .pt, .pth or .th. Without it the model keeps "
        "the weights it is built with.",
        metavar="F",
    ),
]
Data = Annotated[
    str | None,
    option(
        "digits, cifar10:ROOT, cifar100:ROOT, folder:ROOT (ROOT/train/CLASS/…, and ROOT/val or "
        "ROOT/test), path/file.py:factory or package.module:factory.",
        metavar="D",
    ),
]
NumClasses = Annotated[
    int | None, option("Outputs of the classifier, where neither MODEL nor data say.")
]
ImageSize = Annotated[
    int | None,
    option("Height and width of the images, in pixels. Default: what the data or MODEL have."),
]
InputShape = Annotated[
    str | None,
    option("The shape of one sample, such as 3,32,32, where MODEL takes an unusual one."),
]
Mean = Annotated[
    str | None,
    option(
        "Subtracted from each channel of pixels from 0 to 1. Use what the network was trained "
        f"with. {_CHANNELS}",
        metavar="A,B,…",
    ),
]
Std = Annotated[str | None, option(f"Each channel is divided by it. {_CHANNELS}", metavar="A,B,…")]
Seed = Annotated[int, option("Decides all that is random.", min=0, show_default=True)]
Device = Annotated[str | None, option("Where to work. Default: a GPU if there is one.")]
Batch = Annotated[
    int,
    option("Samples per call. Use that of your deployment.", min=1, show_default=True),
]
Threads = Annotated[int | None, option("Threads on the CPU. Default: PyTorch's.", min=1)]
Seconds = Annotated[
    float, option("Measure at least this long; longer is steadier.", min=0.0, show_default=True)
]
ShowMerge = Annotated[
    bool, option("Also show what was merged into what, what was kept and why.", "--merge")
]
Verbose = Annotated[
    bool, option("Show all columns, however narrow the terminal is.", "--verbose", "-v")
]
Json = Annotated[bool, option("Print JSON to standard output, and nothing else.", "--json")]
