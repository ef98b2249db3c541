"""`shoal robustness`: accuracy on corrupted images, dense beside result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import print_json, print_lines, progress_console, result_console

if TYPE_CHECKING:
    import torch

    from shoal.cli.source import Source
    from shoal.data import DataSet
    from shoal.network import Network

__all__ = ["robustness"]


def robustness(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL",
            help="A run's folder, whose dense network is shown beside the result, by default on "
            "the run's data; or a saved network, or a model: torchvision:NAME, timm:NAME, ….",
        ),
    ],
    data: params.Data = None,
    severities: Annotated[
        str, option("How strong, from 1 (light) to 5.", metavar="A,B,…", show_default=True)
    ] = "1,2,3,4,5",
    corruptions: Annotated[
        str | None,
        option(
            "Names with commas between them; an unknown one gets the nearest. Default: all 15.",
            metavar="A,B,…",
        ),
    ] = None,
    samples: Annotated[
        int,
        option(
            "Corrupt this many test images, the same share of each class; 0 for all. An image "
            "takes some milliseconds for each corruption and severity.",
            min=0,
            show_default=True,
        ),
    ] = 500,
    seed: params.Seed = 0,
    checkpoint: params.Checkpoint = None,
    image_size: params.ImageSize = None,
    mean: params.Mean = None,
    std: params.Std = None,
    device: params.Device = None,
    as_json: params.Json = False,
) -> None:
    """Measure accuracy under the 15 corruptions of CIFAR-10-C and ImageNet-C.

    Strengths are those of ImageNet-C: at 32 pixels, stronger than the files of CIFAR-10-C.

    So compare networks with each other by them, not with papers. Needs shoal's extra 'robustness'.
    """
    from shoal.cli.flags import read_names, read_values
    from shoal.cli.source import Source
    from shoal.extras.robustness import CORRUPTIONS, check_options, compare_robustness
    from shoal.report import robustness_lines, robustness_table
    from shoal.report.terminal import print_table
    from shoal.search.compress import working_device

    names = CORRUPTIONS if corruptions is None else read_names("corruptions", corruptions)
    levels = _levels(severities)
    check_options(names, levels)
    where = working_device(device)
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
    print_table(result_console(), robustness_table(found))
    print_lines(result_console(), *robustness_lines(found, part=part, image_size=size))


def _networks(model: str, source: Source, data: DataSet) -> dict[str, Network]:
    """Return what is compared: of a run its dense network and its result, else the one network."""
    from shoal.cli.results import open_dense
    from shoal.cli.source import open_network

    network, dense = open_network(model, source, data), open_dense(model)
    return {"network": network} if dense is None else {"dense": dense, "result": network}


def _data(model: str, spec: str | None, given: dict[str, Any], device: torch.device) -> DataSet:
    """Return the data, read as the run read them where `model` is a run's folder."""
    from shoal.cli.config import data_options, run_options
    from shoal.data import load_data
    from shoal.errors import ConfigError

    own = run_options(Path(model).expanduser())
    read = {**data_options(own), **{k: v for k, v in given.items() if v is not None}}
    name = spec or own.get("data")
    if not name:
        raise ConfigError("no data is given: say which with --data")
    return load_data(name, device=device, **read)


def _levels(text: str) -> list[int]:
    from shoal.errors import OptionError

    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        wanted = "whole numbers from 1 to 5 with commas between them"
        raise OptionError("severities", text, wanted) from None
