"""Parameters that several commands take, each stated once, and those made from options.

A command's parameters with their help stand in its signature: that is what makes some of them long.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.completion import completing

if TYPE_CHECKING:
    from shoal.cli.flags import Flag


def option(help: str, *names: str, **more: Any) -> Any:
    """Return a command's option; `show_default=True` shows its default in the help."""
    number = {"metavar": "N"} if "min" in more or "max" in more else {}
    return typer.Option(*names, help=help, **{"show_default": False, **number, **more})


MODELS = (
    "resnet50 (of torchvision, else timm or shoal), torchvision:NAME, timm:NAME, shoal:NAME, "
    "hf:ORG/NAME (of transformers), path/file.py:factory or package.module:factory; arguments "
    "follow as ?key=value&…."
)
TASKS = (
    "What the network is for, which says what its loss and its quality are: classify (top-1), "
    "multilabel (mAP), binary (one logit, accuracy), regress (R²), segment (mIoU), "
    "path/file.py:Name or package.module:Name."
)
_CHANNELS = "Default: the run's, else the data's own."

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help=f"{MODELS} Or what shoal wrote: a folder, or pushed, hf:ORG/NAME."
    ),
]
Checkpoint = Annotated[
    Path | None,
    option(
        "The trained weights of MODEL: .safetensors, .pt, .pth or .th. Without it the model keeps "
        "the weights it is built with.",
        metavar="F",
    ),
]
Pretrained = Annotated[
    bool,
    option(
        "Take the weights that torchvision or timm publish for MODEL. They are downloaded, unless "
        "the library has them already.",
        "--pretrained",
    ),
]
Data = Annotated[
    str | None,
    option(
        "digits, folder:ROOT (ROOT/train/CLASS/…, and ROOT/val or ROOT/test), cifar10:ROOT, "
        "cifar100, tiny_imagenet, pacs, vlcs (?leave_out=DOMAIN), flowers102, dtd, aircraft, "
        "path/file.py:factory or package.module:factory.",
        metavar="D",
    ),
]
Task = Annotated[
    str | None,
    option(
        f"{TASKS} Options follow as ?key=value&…. Default: the run's, else classify.",
        metavar="TASK",
        autocompletion=completing("task"),
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
Samples = Annotated[
    int, option("Score on this many training images; 0 for all.", min=0, show_default=True)
]
Seed = Annotated[int, option("Decides all that is random.", min=0, show_default=True)]
Device = Annotated[str | None, option("Where to work. Default: a GPU if there is one.")]
Batch = Annotated[
    int, option("Samples per call. Use that of your deployment.", min=1, show_default=True)
]
Runtime = Annotated[
    str,
    option(
        "Where latency is measured: eager (PyTorch), compile, onnxruntime, openvino, tensorrt, or "
        "path/file.py:Name; docs/runtimes.md tells what each needs.",
        show_default=True,
        autocompletion=completing("runtime"),
    ),
]
Runtimes = Annotated[
    str,
    option(
        "Where latency is measured: eager (PyTorch), compile, onnxruntime, openvino, tensorrt; "
        "several with commas between them.",
        metavar="A,B,…",
        show_default=True,
        autocompletion=completing("runtime"),
    ),
]
Threads = Annotated[int | None, option("Threads on the CPU. Default: PyTorch's.", min=1)]
Seconds = Annotated[
    float, option("Measure at least this long; longer is steadier.", min=0.0, show_default=True)
]
ShowMerge = Annotated[
    bool, option("Also show what was merged into what, what was kept and why.", "--merge")
]
Trust = Annotated[
    bool,
    option(
        "Run the code that a folder of a version before 0.2 names to build its model. Only for a "
        "folder that you trust.",
        "--trust",
    ),
]
Verbose = Annotated[
    bool, option("Show all columns, however narrow the terminal is.", "--verbose", "-v")
]
Json = Annotated[bool, option("Print JSON to standard output, and nothing else.", "--json")]


# How a line of the library names a parameter: with its value, or as one that was changed; not in a
# reading such as `folder:ROOT?side=64`. What stands in backticks is somebody's code.
_PARAMETER = re.compile(
    r"`[^`]*`|(?<![?&.\w'/\\-])(?P<name>[a-z][a-z_]*)"
    r"(?:=True\b|=(?P<value>'\w+'|[\d.]*\d)|(?P<was> was \S+ and is ))"
)


def as_flags(text: str) -> str:
    """Return a line of the library in the words of the command line: `--max-drop 2`."""

    def flag(found: re.Match[str]) -> str:
        if not found["name"]:
            return found[0]
        value = found["value"]
        rest = found["was"] or (f" {value.strip(chr(39))}" if value else "")
        return f"--{found['name'].replace('_', '-')}{rest}"

    return _PARAMETER.sub(flag, text)


# A flag in a line of the library, with what stands for its value or a number.
_FLAG = re.compile(r"`[^`]*`|(?<![\w-])--(?P<name>[a-z][a-z-]*)(?: (?P<value>[A-Z]\b|[\d.]*\d))?")


def as_options(text: str, known: Collection[str]) -> str:
    """Return a line of the library in the words of a file of options: `max_drop: 2`.

    For commands whose options stand in a file; the flags of their own, `known`, stay flags.
    """

    def option(found: re.Match[str]) -> str:
        name = (found["name"] or "").replace("-", "_")
        told = found.groupdict()
        if not name or told.get("was"):
            return found[0]
        if f"--{name.replace('_', '-')}" in known:
            return as_flags(found[0])
        given = told["value"] or ("true" if found[0].endswith("=True") else "")
        return f"{name}: {given.strip(chr(39))}" if given else name

    return _FLAG.sub(option, _PARAMETER.sub(option, text))


def with_flags(command: Callable[..., Any], flags: Iterable[Flag]) -> Callable[..., Any]:
    """Return a command that ends in `**flags` with one parameter for each flag.

    Its own parameters that stand under one of the flags' headings come before these flags.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    made = [
        inspect.Parameter(flag.option.name, keyword, default=None, annotation=flag.annotation)
        for flag in flags
    ]
    panels = list(dict.fromkeys([None, *map(_panel, made), *map(_panel, own)]))
    parameters = sorted([*own, *made], key=lambda parameter: panels.index(_panel(parameter)))

    @wraps(command)
    def with_these(**given: Any) -> Any:
        return command(**given)

    # typer reads the one or the other, depending on its release.
    with_these.__dict__["__signature__"] = signature.replace(parameters=parameters)
    with_these.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_these


def _panel(parameter: inspect.Parameter) -> str | None:
    made = getattr(parameter.annotation, "__metadata__", (None,))[0]
    return getattr(made, "rich_help_panel", None)
