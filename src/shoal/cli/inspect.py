"""`shoal inspect`: what a network is made of, and what of it the task may not need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from shoal.cli.screen import print_json, progress_console, result_console

__all__ = ["inspect"]

_SAMPLES = 2000


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="torchvision:NAME, timm:NAME, shoal:NAME, path/file.py:factory, "
            "package.module:factory, or a folder that shoal wrote.",
        ),
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The trained weights.", metavar="F", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data to score on: digits, cifar10:ROOT, folder:ROOT, ….",
            metavar="D",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(help="Score on so many training images; 0 takes all.", min=0),
    ] = _SAMPLES,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="How to score: entropy, line_loss, … score the rectifiers, cka, "
            "block_influence, lesion, … the blocks; docs/methods.md lists them. Default: entropy.",
            show_default=False,
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            help="Outputs of the classifier, where neither data nor MODEL tell.",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            help="Height and width of the image, in pixels. Default: what the model usually takes.",
            show_default=False,
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            help="The shape of one sample, such as 3,32,32, for a model that takes another one "
            "than usual. The --data decide if given.",
            show_default=False,
        ),
    ] = None,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Also measure the latency on this machine, and what dropping each block saves of "
            "it.",
        ),
    ] = False,
    batch: Annotated[int, typer.Option(help="Batch size of that measurement.", min=1)] = 1,
    device: Annotated[
        str | None,
        typer.Option(help="Where to work. Default: a GPU if there is one.", show_default=False),
    ] = None,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Show all columns, however narrow the terminal is."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything to standard output as JSON.")
    ] = False,
) -> None:
    """Show a network's rectifiers, blocks and figures; with --data, how much each one works.

    A rectifier whose neurons are nearly always in one state (low entropy) can go first.
    """
    from shoal.cli.compress import chosen_device
    from shoal.cli.source import Source, load_examples, open_network, parse_shape, random_weights
    from shoal.errors import ConfigError
    from shoal.importance import make_criterion, score_by
    from shoal.measure import benchmark
    from shoal.report import inspect_network, inspection_lines, inspection_tables
    from shoal.report.terminal import print_lines, print_table
    from shoal.surgery.block_costs import block_costs

    if data is None and criterion is not None:
        raise ConfigError("criterion is given without data to score on: add --data")
    where = chosen_device(device)
    examples = load_examples(data, image_size, where)
    source = Source(checkpoint, num_classes, image_size, parse_shape(input_shape))
    network = open_network(model, source, examples).to(where)
    scores = None
    chosen = make_criterion(criterion or "entropy")
    if random_weights(model, checkpoint):
        progress_console().print(f"note: {model} has random weights: give --checkpoint")
    left = any(site.linearized is None for site in network.sites)
    if examples is not None and (left or chosen.place != "site"):
        with progress_console().status("scoring"):
            scores = score_by(chosen, network, examples.train, samples=samples or None)
    measured = costs = None
    if latency:
        args, kwargs = network.example_inputs(batch)
        inputs: Any = kwargs or args
        with progress_console().status("measuring"):
            measured = benchmark(network, inputs)
            costs = block_costs(network, inputs, min_seconds=2.0)
    found = inspect_network(network, model, scores=scores, benchmark=measured, costs=costs)
    if as_json:
        print_json(found.to_dict())
        return
    console = result_console()
    for table in inspection_tables(found):
        print_table(console, table, verbose=verbose)
    print_lines(console, inspection_lines(found))
