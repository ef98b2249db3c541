"""`shoal benchmark`: latency and work on this machine, beside a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli import params
from shoal.cli.params import option
from shoal.cli.screen import print_json, progress_console, result_console

if TYPE_CHECKING:
    from shoal.cli.source import Source
    from shoal.network import Network

__all__ = ["benchmark"]


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
    threads: params.Threads = None,
    seconds: params.Seconds = 2.0,
    num_classes: params.NumClasses = None,
    image_size: params.ImageSize = None,
    input_shape: params.InputShape = None,
    device: params.Device = None,
    as_json: params.Json = False,
) -> None:
    """Measure latency, work, parameters and depth; the ratio too when there is a baseline.

    Both are timed in turn, round by round: a machine that is busy at times is so for both.
    """
    from shoal.cli.source import Source, example_inputs, parse_shape
    from shoal.measure import benchmark as measure
    from shoal.report.latency_tables import benchmark_table
    from shoal.report.terminal import print_table
    from shoal.search.compress import working_device

    where = working_device(device)
    source = Source(None, num_classes, image_size, parse_shape(input_shape))
    network = _opened(model, source).to(where)
    baseline = _baseline(model, against, source)
    with progress_console().status("measuring"):
        result = measure(
            network,
            example_inputs(network, batch),
            None if baseline is None else baseline.to(where),
            threads=threads,
            min_seconds=seconds,
            max_seconds=max(60.0, 2 * seconds),
        )
    if as_json:
        print_json(result.to_dict())
    else:
        print_table(result_console(), benchmark_table(result))


def _opened(text: str, source: Source) -> Network:
    """Return the network of that name; of a run, its result merged, as it would be used."""
    from shoal.cli.results import is_run, open_result
    from shoal.cli.source import open_network

    return open_result(text) if is_run(Path(text).expanduser()) else open_network(text, source)


def _baseline(model: str, against: str | None, source: Source) -> Network | None:
    """Return what to compare with: what was asked for, else a run's own dense network, folded."""
    from shoal.cli.results import open_dense
    from shoal.search.gauge import folded

    if against is not None:
        return _opened(against, source)
    dense = open_dense(model)
    return None if dense is None else folded(dense)
