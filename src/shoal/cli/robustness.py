"""`shoal robustness`: accuracy on corrupted images, dense beside result."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show
from shoal.errors import OptionError
from shoal.user_paths import user_path


# Long because each option of the command is a parameter here.
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
    task: params.Task = None,
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
    pretrained: params.Pretrained = False,
    image_size: params.ImageSize = None,
    mean: params.Mean = None,
    std: params.Std = None,
    device: params.Device = None,
    trust: params.Trust = False,
    as_json: params.Json = False,
) -> None:
    """Measure quality under the 15 corruptions of CIFAR-10-C and ImageNet-C.

    Strengths are those of ImageNet-C: at 32 pixels, stronger than the files of CIFAR-10-C.

    So compare networks with each other by them, not with papers. Needs shoal's extra 'robustness'.
    """
    from shoal.cli.config import run_options, run_task
    from shoal.cli.flags import read_names, read_values
    from shoal.cli.source import Source, open_dense, open_network, read_data, run_data
    from shoal.data import data_sets
    from shoal.extras.robustness import CORRUPTIONS, check_options, compare_robustness
    from shoal.report import robustness_lines, robustness_table
    from shoal.search.compress import working_device

    names = CORRUPTIONS if corruptions is None else read_names("corruptions", corruptions)
    levels = _levels(severities)
    check_options(names, levels)
    where, run = working_device(device), run_options(user_path(model))
    name, scales = run_data(run, data), read_values(mean=mean, std=std)
    built_in = name.partition(":")[0] in data_sets
    # A factory normalises by itself, and may not say by what.
    own = {"image_size": image_size, **(scales if built_in else {})}
    examples = read_data(name, where, run, model=model, pretrained=pretrained, **own)
    network, dense = (
        open_network(model, Source(checkpoint, trust=trust, pretrained=pretrained), examples),
        open_dense(model, trust=trust),
    )
    networks = {"network": network} if dense is None else {"dense": dense, "result": network}
    part = "validation" if examples.test is None else "test"
    images: Any = examples.val if examples.test is None else examples.test
    with progress_console().status("corrupting and evaluating") as status:
        found = compare_robustness(
            {name: network.to(where) for name, network in networks.items()},
            images,
            corruptions=names,
            severities=levels,
            seed=seed,
            samples=samples or None,
            mean=examples.mean or scales.get("mean"),
            std=examples.std or scales.get("std"),
            task=run_task(run, task),
            progress=lambda done, total: status.update(
                f"corrupting and evaluating: {done} of {total}"
            ),
        )
    size = examples.sample_shape[-1]
    value = {
        "data": examples.name,
        "part": part,
        "image_size": size,
        "strengths": "ImageNet-C",
        "networks": {name: one.to_dict() for name, one in found.items()},
    }
    lines = robustness_lines(found, part=part, image_size=size)
    show(value, [robustness_table(found)], lines, as_json=as_json)


def _levels(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        wanted = "whole numbers from 1 to 5 with commas between them"
        raise OptionError("severities", text, wanted) from None
