"""`shoal inspect`: what a network is made of, and what of it the task may not need."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from shoal.cli import params
from shoal.cli.completion import completing
from shoal.cli.params import option
from shoal.cli.screen import progress_console, show
from shoal.display import print_lines, to_type
from shoal.errors import ConfigError
from shoal.user_paths import user_path

if TYPE_CHECKING:
    from shoal.data import DataSet


# Long because each option of the command is a parameter here.
def inspect(
    model: params.Model,
    checkpoint: params.Checkpoint = None,
    pretrained: params.Pretrained = False,
    data: params.Data = None,
    task: params.Task = None,
    samples: params.Samples = 2000,
    criterion: Annotated[
        str | None,
        option(
            "How to score: entropy, line_loss, … score the rectifiers, cka, block_influence, "
            "lesion, … the blocks; docs/methods.md lists them. Default: entropy.",
            autocompletion=completing("criterion"),
        ),
    ] = None,
    num_classes: params.NumClasses = None,
    image_size: params.ImageSize = None,
    input_shape: params.InputShape = None,
    mean: params.Mean = None,
    std: params.Std = None,
    latency: Annotated[
        bool,
        option("Also measure the latency here, and what dropping each block saves.", "--latency"),
    ] = False,
    batch: params.Batch = 1,
    runtime: params.Runtime = "eager",
    device: params.Device = None,
    trust: params.Trust = False,
    verbose: params.Verbose = False,
    as_json: params.Json = False,
) -> None:
    """Show a network's rectifiers, blocks and figures; with --data, how much each one works.

    A rectifier whose neurons are nearly always in one state (low entropy) can go first.
    """
    from shoal.cli.config import run_options, run_task
    from shoal.cli.flags import read_values
    from shoal.cli.source import (
        Source,
        open_network,
        parse_shape,
        read_data,
    )
    from shoal.importance import make_criterion, score_by
    from shoal.measure import benchmark
    from shoal.report import inspect_network, inspection_lines, inspection_tables
    from shoal.search.compress import working_device
    from shoal.search.job_model import random_weights, weights_advice
    from shoal.surgery.drop import block_costs

    if data is None and criterion is not None:
        raise ConfigError("criterion is given without data to score on: add --data")
    where = working_device(device)
    if data is None and (mean or std):
        raise ConfigError("mean and std are of data to score on: add --data")
    examples = None
    if data is not None:
        own = read_values(mean=mean, std=std)
        examples = read_data(
            data, where, model=model, pretrained=pretrained, image_size=image_size, **own
        )
    source = Source(
        checkpoint, num_classes, image_size, parse_shape(input_shape), trust, pretrained
    )
    network = open_network(model, source, examples).to(where)
    scores = measured = costs = None
    goal = run_task({} if data is None else run_options(user_path(model)), task)
    chosen = make_criterion(criterion or "entropy").of_task(goal)
    if random_weights(model, checkpoint, pretrained):
        told = f"note: {model} has random weights: give {weights_advice(model)}"
        print_lines(progress_console(), told)
    left = any(site.linearized is None for site in network.sites)
    if examples is not None and (left or chosen.place != "site"):
        with progress_console().status("scoring"):
            scores = score_by(chosen, network, examples.train, samples=samples or None)
    if latency:
        inputs = network.example(batch)
        with progress_console().status("measuring"):
            measured = benchmark(network, inputs, runtime=runtime)
            costs = block_costs(network, inputs, min_seconds=2.0, runtime=runtime)
    found = inspect_network(network, model, scores=scores, benchmark=measured, costs=costs)
    asked = {"--task": task, "--image-size": image_size, "--mean": mean, "--std": std,
             "--device": device}  # fmt: skip
    measuring = {"--runtime": None if runtime == "eager" else runtime,
                 "--batch": None if batch == 1 else batch}  # fmt: skip
    following = _following(model, checkpoint, pretrained, examples, data, asked | measuring)
    lines = [*inspection_lines(found), "".join(following)]
    value = {**found.to_dict(), "next": following[-1].strip()}
    show(value, inspection_tables(found), lines, as_json=as_json, verbose=verbose)


def _following(
    model: str,
    checkpoint: Path | None,
    pretrained: bool,
    examples: DataSet | None,
    data: str | None,
    asked: dict[str, Any],
) -> tuple[str, str]:
    """Return what to do next, and the command that does it, with what the user has given."""
    from shoal.search.job_model import is_folder, new_last_layer, random_weights

    if is_folder(model):
        return "next, how fast it is here:", to_type("benchmark", model)
    weights = [] if checkpoint is None else ["--checkpoint", checkpoint]
    weights += ["--pretrained"] if pretrained else []
    random = random_weights(model, checkpoint, pretrained)
    weights += ["--checkpoint", "F"] if random else []
    flags = [(flag, value) for flag, value in asked.items() if value is not None]
    if examples is None:
        words = (model, *weights, "--data", "D", *chain(*flags))
        return "next, what the task needs of it, on your data D:", to_type("inspect", *words)
    if not random and new_last_layer(model, checkpoint, examples):
        flags.append(("--dense-epochs", 5))
    flags = [("--latency-batch" if flag == "--batch" else flag, value) for flag, value in flags]
    words = (model, *weights, "--data", data, *chain(*flags), "--method", "shoal", "--out", "run")
    return "next, make it faster within a point of quality:", to_type("compress", *words)
