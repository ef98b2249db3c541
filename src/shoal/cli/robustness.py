"""`shoal robustness`: accuracy on corrupted images, dense beside result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli.screen import print_json, progress_console, result_console

if TYPE_CHECKING:
    import torch

    from shoal.cli.source import Source
    from shoal.data import DataSet
    from shoal.network import Network

__all__ = ["robustness"]

_SAMPLES = 500


def robustness(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL",
            help="A run's folder, whose dense network is shown beside the result; or a saved "
            "network, or a model: torchvision:NAME, timm:NAME, shoal:NAME, ….",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Data whose test images are corrupted: cifar10:ROOT, folder:ROOT, …. Default: of "
            "a run's folder, the run's own.",
            metavar="D",
            show_default=False,
        ),
    ] = None,
    severities: Annotated[
        str, typer.Option(help="How strong, from 1 (light) to 5.", metavar="A,B,…")
    ] = "1,2,3,4,5",
    corruptions: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between them; an unknown one gets the nearest. Default: all "
            "15.",
            metavar="A,B,…",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            help="Corrupt so many test images, the same share of each class; 0 takes all. An image "
            "takes some milliseconds for each corruption and severity.",
            min=0,
        ),
    ] = _SAMPLES,
    seed: Annotated[int, typer.Option(help="Decides the corruptions' random numbers.", min=0)] = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The trained weights of a MODEL.", metavar="F", show_default=False),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Height and width of the images, in pixels; 32 or more. Default: the run's, else "
            "the data's own.",
            show_default=False,
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            help="What is subtracted from each channel, of pixels from 0 to 1. Take what the "
            "network was trained with. Default: the run's, else the data's own.",
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
    device: Annotated[
        str | None,
        typer.Option(help="Where to work. Default: a GPU if there is one.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all accuracies to standard output as JSON.")
    ] = False,
) -> None:
    """Measure accuracy under the 15 corruptions of CIFAR-10-C and ImageNet-C.

    Strengths are those of ImageNet-C: at 32 pixels, stronger than the files of CIFAR-10-C.

    So compare networks with each other by them, not with papers. Needs shoal's extra 'robustness'.
    """
    from shoal.cli.compress import chosen_device
    from shoal.cli.flags import read_values
    from shoal.cli.source import Source
    from shoal.extras.robustness import check_options, compare_robustness
    from shoal.report import robustness_lines, robustness_table
    from shoal.report.terminal import print_lines, print_table

    names, levels = _names(corruptions), _levels(severities)
    check_options(names, levels)
    where = chosen_device(device)
    given = {"image_size": image_size, **read_values(mean=mean, std=std)}
    examples = _data(model, data, given, where)
    networks = {
        name: network.to(where)
        for name, network in _networks(model, Source(checkpoint), examples).items()
    }
    loader: Any = examples.test if examples.test is not None else examples.val
    with progress_console().status("corrupting and evaluating") as status:
        found = compare_robustness(
            networks,
            loader,
            corruptions=names,
            severities=levels,
            seed=seed,
            samples=samples or None,
            mean=examples.mean or None,
            std=examples.std or None,
            progress=lambda done, total: status.update(
                f"corrupting and evaluating: {done} of {total}"
            ),
        )
    part = "test" if examples.test is not None else "validation"
    size = examples.sample_shape[-1]
    if as_json:
        print_json(
            {
                "data": examples.name,
                "part": part,
                "image_size": size,
                "strengths": "ImageNet-C",
                "networks": {name: one.to_dict() for name, one in found.items()},
            }
        )
        return
    console = result_console()
    print_table(console, robustness_table(found))
    print_lines(console, robustness_lines(found, part=part, image_size=size))


def _networks(model: str, source: Source, data: DataSet) -> dict[str, Network]:
    """Return what is compared: of a run its dense network and its result, else the one network."""
    from shoal.cli.source import open_network

    network = open_network(model, source, data)
    dense = Path(model).expanduser() / "steps" / "000"
    if not dense.is_dir():
        return {"network": network}
    return {"dense": open_network(str(dense), source, data), "result": network}


def _data(model: str, spec: str | None, given: dict[str, Any], device: torch.device) -> DataSet:
    """Return the data, read as the run read them where `model` is a run's folder.

    Raises:
        ConfigError: neither the user nor a run says which data.
    """
    from shoal.cli.config import data_options, run_options
    from shoal.data import load_data
    from shoal.errors import ConfigError

    own = run_options(Path(model).expanduser())
    read = {**data_options(own), **{k: v for k, v in given.items() if v is not None}}
    name = spec or own.get("data")
    if not name:
        raise ConfigError("no data is given: say which with --data")
    return load_data(name, device=device, **read)


def _names(text: str | None) -> list[str]:
    from shoal.extras.robustness import CORRUPTIONS

    if text is None:
        return list(CORRUPTIONS)
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _levels(text: str) -> list[int]:
    from shoal.errors import ConfigError

    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(
            f"severities is '{text}': give whole numbers from 1 to 5 with commas between them"
        ) from None
