"""The twin of a result: the same layers, trained from scratch for as long as the run took.

What any reader asks of a pruned network (an ablation of Quétu et al. 2024; Liu et al. 2019): were
the weights worth keeping, or is it the architecture alone? The twin is the best network before
merging, with new weights, trained for the sum of all the run's epochs by the recipe of its dense
training, then merged and measured like the result. It is a run of its own, in the run's folder, of
a dense network without a step after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError, RunError
from shoal.merge.loading import load
from shoal.network.fresh import reset_weights_
from shoal.options import Recipe, at_budget, find_recipe
from shoal.sealed import read_sealed
from shoal.search.compress import compress, size_of
from shoal.search.method import Method
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.records import Result, RunRecord
from shoal.search.run_files import AGAIN, TWIN, read_run, remedied
from shoal.search.settings import Settings, task_of_run
from shoal.user_paths import user_path

if TYPE_CHECKING:
    from shoal.search.lab import Lab
    from shoal.tasks import Task


class Twin(Method):
    """Trains, and removes nothing."""

    removes = False

    def step(self, lab: Lab) -> bool:
        """End the search."""
        return lab.done("a twin is trained once, and nothing is removed")


# Long because each of its arguments is explained; the body is short.
def twin(
    folder: str | Path,
    train: Iterable[Any],
    val: Iterable[Any],
    *,
    test: Iterable[Any] | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    task: str | Task | None = None,
    device: str | None = None,
    **more: Any,
) -> Result:
    """Train the architecture of a run's result from scratch, for as many epochs as the run took.

    It is kept in the folder `twin` within the run's, and goes on there if it was interrupted;
    `shoal.report.read_run` reads it, and `shoal report` and `shoal compare` show it beside the
    result.

    Args:
        folder: of a finished run.
        train: the run's training batches.
        val: its validation batches.
        test: its test batches, if it had any.
        epochs: of training; by default the sum of all the run's trainings that its steps report.
        seed: decides the weights and the training; by default the run's.
        task: what the network is for; by default the run's, unless code had to make it.
        device: where to work; None takes a GPU if there is one.
        **more: `fit`, `evaluate`, `loss`, `listener`, `progress`, `about`, `config`, `identity`,
            `gauge` of `shoal.compress`.

    Returns:
        The record and the networks: `dense` are the figures of the trained twin, `merged` is what
        to use.

    Raises:
        RunError: the folder is no finished run, or holds a twin of other options.
        ConfigError: the run trained for no epoch, or had other data than these.

    Example:
        >>> import shoal, tempfile, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = shoal.compress(model, batches, batches, "easier", 100.0, 2, folder)
        ...     found = shoal.twin(folder, batches, batches)
        >>> found.steps[0].epochs, found.merged(batches[0][0]).shape
        (2, torch.Size([8, 3]))
    """
    run = user_path(folder)
    record = read_run(run)
    if not record.finished:
        raise RunError(f"the run in '{run}' has no result yet: give its command again to finish it")
    with remedied(AGAIN):
        known = read_sealed(run / "identity.json")
    _check_sizes(known, {"train": train, "val": val, "test": test})
    count = epochs_of(record) if epochs is None else epochs
    if count < 1:
        raise ConfigError(f"the run in '{run}' trained for no epoch: say how many, by epochs")
    settings = _settings(known, count, seed, task)
    if device is not None:
        settings = replace(settings, machine=replace(settings.machine, device=device))
    network = load(run, "best")
    network.plan.operations.clear()  # the twin was never anything else
    alone = reset_weights_(network, settings.search.seed)
    network.notes = (*network.notes, *_notes(record, count, alone))
    return compress(network, train, val, settings, test=test, out=run / TWIN, **more)


def epochs_of(record: RunRecord) -> int:
    """Return for how many epochs the networks of all steps were trained."""
    return sum(step.epochs for step in record.steps)


def _settings(
    run: Mapping[str, Any], epochs: int, seed: int | None, task: str | Task | None
) -> Settings:
    """Return how the twin is trained: as the run's dense network was, or would have been."""
    wanted = SearchOptions.from_dict(_own(run, SearchOptions))
    recipe = Recipe.from_dict(_own(run, Recipe))
    if wanted.dense_recipe is not None:
        recipe = find_recipe(wanted.dense_recipe).computed_like(recipe)
    if wanted.dense_lr is not None:
        recipe = replace(recipe, lr=wanted.dense_lr)
    recipe = replace(at_budget(recipe, wanted.budget or 1.0), distill=0.0)  # it has no teacher
    search: dict[str, Any] = {"epochs": 0, "dense_epochs": epochs}
    search["seed"] = wanted.seed if seed is None else seed
    machine = _own(run, MachineOptions)
    made = Settings.of(Twin, recipe, task=task_of_run(run, task), **search, **machine)
    return replace(made, name=TWIN)


def _own(values: Mapping[str, Any], options: type[Any]) -> dict[str, Any]:
    names = {f.name for f in fields(options)}
    return {name: value for name, value in values.items() if name in names}


def _notes(record: RunRecord, epochs: int, alone: list[str]) -> list[str]:
    """Return what to know of the twin."""
    notes = []
    if not record.steps[0].epochs:
        notes.append(
            f"the run's network came trained: the twin has the {epochs} epochs of the run alone, "
            "and not those before it"
        )
    if alone:
        more = ", …" if len(alone) > 3 else ""
        notes.append(
            f"{len(alone)} parameters belong to no layer that initialises them, and were drawn as "
            f"usual: {', '.join(alone[:3])}{more}"
        )
    return notes


def _check_sizes(run: Mapping[str, Any], data: Mapping[str, Iterable[Any] | None]) -> None:
    before: Any = run.get("samples_in") or {}
    for part, loader in data.items():
        size = size_of(loader)
        if before.get(part) is not None and size != before[part]:
            raise ConfigError(
                f"the run had {before[part]:,} of the {part} data and these are "
                f"{'none' if size is None else format(size, ',')}: give the run's data"
            )
