"""`shoal benchmark`: latency and work on this machine, beside a baseline."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show


# Long because each option of the command is a parameter here.
def benchmark(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR|MODEL",
            help="A run's folder (its result, merged), another that shoal wrote, or a model: "
            "torchvision:NAME, timm:NAME, ….",
        ),
    ],
    against: Annotated[
        str | None,
        option(
            "What to compare with, in the same rounds. Default: of a run's folder, its dense "
            "network with its batch norms folded.",
            metavar="DIR|MODEL",
        ),
    ] = None,
    batch: params.Batch = 1,
    runtime: params.Runtime = "eager",
    threads: params.Threads = None,
    seconds: params.Seconds = 2.0,
    num_classes: params.NumClasses = None,
    image_size: params.ImageSize = None,
    input_shape: params.InputShape = None,
    device: params.Device = None,
    trust: params.Trust = False,
    as_json: params.Json = False,
) -> None:
    """Measure latency, work, parameters and depth; the ratio too when there is a baseline.

    Both are timed in turn, round by round: a machine that is busy at times is so for both.
    """
    from shoal.cli.source import (
        Source,
        open_dense,
        open_usable,
        parse_shape,
        refuse_shape,
        spelled,
    )
    from shoal.measure import benchmark as measure
    from shoal.network.inputs import tensors_of
    from shoal.report import task_lines
    from shoal.report.latency_tables import benchmark_table
    from shoal.search.compress import working_device
    from shoal.search.ending import folded

    where = working_device(device)
    source = Source(None, num_classes, image_size, parse_shape(input_shape), trust)
    refuse_shape([model] if against is None else [model, against], source)
    network = open_usable(model, source).to(where)
    baseline = open_dense(model, trust=trust) if against is None else open_usable(against, source)
    if baseline is not None and against is None:
        baseline = folded(baseline)
    with progress_console().status("measuring"):
        result = measure(
            network,
            network.example(batch),
            None if baseline is None else baseline.to(where),
            runtime=runtime,
            threads=threads,
            min_seconds=seconds,
            max_seconds=max(60.0, 2 * seconds),
        )
    shapes = [tuple(tensor.shape[1:]) for tensor in tensors_of(network.example(batch))]
    table = benchmark_table(
        result, "dense" if against is None else "baseline", samples=spelled(shapes)
    )
    value = {**result.to_dict(), "input_shapes": shapes}
    show(value, [table], task_lines(network.meta), as_json=as_json)
