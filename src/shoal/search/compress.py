"""The one call that does the main job: from a trained network to a shallower one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.data.batch import Batch, batch_count, first_batch, training_batches
from shoal.display import above, in_notebook
from shoal.distributed import default_device, ensure_initialised, is_main, world
from shoal.errors import CaptureError, ConfigError, DataError
from shoal.importance import criterion_for
from shoal.models import check_finite
from shoal.modes import device_of, eval_mode
from shoal.network import Network, capture
from shoal.network.inputs import resolve_device
from shoal.network.saving import state_hash
from shoal.options import Recipe, find_recipe
from shoal.passes.batches import check_whole, plain
from shoal.runtimes import find_runtime
from shoal.runtimes.int8 import quantizers
from shoal.search.budget import Clock
from shoal.search.engine import search
from shoal.search.facts import describe_
from shoal.search.gauge import Data, Gauge
from shoal.search.method import Method
from shoal.search.records import Result
from shoal.search.rewind import Rewind
from shoal.search.run import Run
from shoal.search.settings import Settings
from shoal.search.setup import Listener, Meter, Setup
from shoal.surgery import swap_rectifiers_
from shoal.tasks import Loss, Task, with_own
from shoal.tasks.custom import names_of
from shoal.tasks.task import losses_of
from shoal.training.evaluate import broken_inputs
from shoal.user_paths import user_path


# Long because each of its arguments is explained; the body is short.
def compress(
    model: nn.Module,
    train: Iterable[Any],
    val: Iterable[Any],
    method: str | type[Method] | Method | Settings = "shoal",
    max_drop: float = 1.0,
    epochs: int = 1,
    out: str | Path | None = None,
    *,
    test: Iterable[Any] | None = None,
    task: str | type[Task] | Task = "classify",
    fit: Callable[[Network], object] | None = None,
    evaluate: Callable[[Network, Iterable[Any]], float] | None = None,
    loss: Loss | None = None,
    recipe: Recipe | str | Mapping[str, Any] | None = None,
    base: str | None = None,
    device: torch.device | str | None = None,
    listener: Listener | None = None,
    progress: bool | None = None,
    config: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    meter: Meter | None = None,
    gauge: Gauge | None = None,
    **options: Any,
) -> Result:
    """Make a trained network shallower at the quality asked for.

    Args:
        model: the trained network, or a captured `Network`. It is left as it is.
        train: training batches with a length; `(inputs, targets)` or as `split_batch` takes them.
        val: validation batches. All choices follow from them, so they must not be the test data.
        method: a registered name, `path/file.py:Name` or `package.module:Name`, each with options
            as in "easier?how=identity"; a subclass of `Method`, or an instance of one; or complete
            `Settings`, which replace all options.
        max_drop: points of validation quality that the result may lose against the dense network.
        epochs: epochs of fine-tuning after each removal.
        out: a folder for every step, the result and a journal. Called again with the same
            arguments, an interrupted run goes on from it; None keeps nothing.
        test: test batches: measured at every step and reported, never used for a choice.
        task: what the network is for, which says what its loss and its quality are: "classify"
            (top-1), "multilabel" (mAP), "binary" (one logit, accuracy), "regress" (R²), "segment"
            (mIoU), with options as in "segment?ignore_index=0"; a registered name,
            `path/file.py:Name` or `package.module:Name`; or a `shoal.Task`.
        fit: trains a network in place, instead of the built-in trainer: after each removal, before
            the first if `dense_epochs` is above 0, and at the end if `final_epochs` is.
        evaluate: returns the quality of a network on data, in points, higher is better, in place
            of the task's. Tables call it by the function's name. It is called in eval mode and
            without gradients.
        loss: called with what the network returns and the target, in place of the task's loss;
            returns the mean over the batch or one loss per sample. With `evaluate` as well, what
            the network returns and what the targets are is not looked at.
        recipe: how to train: a `Recipe`, the name of one, or options that differ from the method's
            own, which is "distill" for "shoal" and "finetune" for the others.
        base: how to build the model again when the result is loaded ("torchvision:resnet18").
        device: where to work; None takes a GPU if there is one.
        listener: told of the progress.
        progress: whether to show it, as bars or lines; by default on a terminal and in a notebook,
            unless there is a listener.
        config: what else `config.yaml` records beside all options: where model and data come from.
        identity: what else decides the result, such as the batch size: a folder that was begun
            with other values is refused.
        about: what goes with the saved networks (`Network.meta`), as JSON values: `classes`, the
            names in the order of the labels; `mean` and `std` of each channel of pixels from 0 to
            1; whatever else you want. Shoal's own loaders know these three, and a `DataLoader` the
            names that its data set has as `classes`. Figures are added at the end.
        meter: measures what training takes: `shoal.extras.search_energy.SearchEnergy` measures
            energy and CO2 of the run's training, and of an epoch of training and 1,000 inferences
            of dense and result. None measures nothing.
        gauge: measures quality and latency in place of this machine, for tests.
        **options: fields of `SearchOptions`, `MachineOptions` and `Recipe`, and of the `Options` of
            the method and of the task.

    Returns:
        The last network within `max_drop`, or with `final_epochs` the fastest that a last training
        brings within it, with all steps and figures.

    Raises:
        ShoalError: one line on what is wrong: options, data, weights that are not finite, a model
            that cannot be captured, a folder that cannot be used.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
        >>> result = shoal.compress(model, batches, batches, "easier", max_drop=100.0, lr=0.01)
        >>> [step.operation for step in result.steps]
        ['dense', 'linearize']
    """
    began = time.monotonic()
    given = {"training": train, "validation": val}
    _check_arguments(model, given if test is None else {**given, "test": test}, fit)
    if not isinstance(method, Settings):
        if device is not None:
            options["device"] = str(device)
        kind: Any = method
        if isinstance(method, Method):
            kind, options = type(method), {**method.options.to_dict(), **options}
        method = Settings.of(kind, recipe, task=task, max_drop=max_drop, epochs=epochs, **options)
    asked = method
    settings = asked.at_budget()
    wanted, machine = settings.search, settings.machine
    goal = with_own(settings.task, loss, evaluate)
    chosen = method_of(settings, goal)
    trains = fit is None and max(wanted.epochs, wanted.dense_epochs, wanted.final_epochs) > 0
    if trains:
        training_batches(train)
    check_finite(model)
    first = _first_batch(train, "training")
    _first_batch(val, "validation")
    place = working_device(machine.device)
    if machine.int8 and place.type != "cpu":
        raise ConfigError(
            f"int8 is quantized and timed on the CPU, and the work is on '{place}': give "
            "device='cpu', or omit int8 and export the result in int8 afterwards"
        )
    network = _captured(model, first, base).to(place).eval()
    swapped = [] if wanted.rectifier is None else swap_rectifiers_(network, wanted.rectifier)
    describe_(network, train, goal, settings.task_name, about or {})
    parts = {"training": train, "validation": val, "test": test}
    notes = _check_task(network, goal, parts, trains)
    named = [name for name in (wanted.dense_recipe, wanted.final_recipe) if name is not None]
    if any(one.mix > 0.0 for one in (settings.recipe, *map(find_recipe, named))):
        first.check_mixable()
    if wanted.rectifier is not None and not swapped:
        have = f"all are {wanted.rectifier} already" if network.sites_left else "there is none left"
        notes.append(f"no rectifier of the network was swapped: {have}")
    if swapped and not wanted.dense_epochs:
        notes.append(
            f"all rectifiers are {wanted.rectifier} now, and the network is not trained with them: "
            "give dense_epochs"
        )
    run = None
    if out is not None:
        own = names_of({"fit": fit, "evaluate": evaluate, "loss": loss})
        known = _identity(model, train, val, test)
        run = Run(
            user_path(out),
            {**asked.identity(), **own, **(identity or {}), **known},
            {**(config or {}), **asked.to_dict()},
        )
    data = Data(train, val, test)
    watched = nullcontext(listener) if listener else shown_progress(progress)
    kept = None if run is None or wanted.hours is None else run.clock_file
    try:
        with watched as told:
            setup = Setup(
                base=network,
                data=data,
                options=wanted,
                machine=machine,
                recipe=settings.recipe,
                gauge=gauge or Gauge(data, machine.batches, machine.runtimes, goal),
                listener=told,
                rewind=Rewind(wanted, network, run, own_training=fit is not None),
                task=goal,
                fit=fit,
                run=run,
                meter=meter,
                clock=Clock(kept, began),
            )
            return search(chosen, setup, notes)
    finally:
        if run is not None:
            run.close()


def shown_progress(wanted: bool | None) -> AbstractContextManager[Listener]:
    """Return what shows a search's progress; by default on a terminal and in a notebook."""
    if not wants_progress(wanted):
        return nullcontext(Listener())
    shown: AbstractContextManager[Listener] = above("shoal.report.progress:progress_in_python")()
    return shown


def wants_progress(wanted: bool | None) -> bool:
    """Return whether this process shows progress: by default on a terminal and in a notebook."""
    if wanted is None:
        wanted = in_notebook() or sys.stderr.isatty()
    return wanted and is_main()


def method_of(settings: Settings, task: Task | None = None) -> Method:
    """Return the method of some settings; raises if its criterion or the runtime does not exist.

    The task is the settings' own where none is given.
    """
    chosen: Method = settings.method(settings.options)
    for name in settings.machine.runtimes:
        find_runtime(name)
    if settings.machine.int8 and not quantizers():
        raise ConfigError(
            "int8 needs a runtime that can quantize: run `pip install 'shoal[onnx]'`, or omit it"
        )
    if chosen.scores:
        goal = task or settings.task
        criterion_for(settings.options.criterion, chosen.scores, task=goal)
    return chosen


def working_device(device: torch.device | str | None) -> torch.device:
    """Return where this process works: the device asked for, else a GPU if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if device is None:
        return default_device()
    found = resolve_device(device)
    ensure_initialised(found)
    own = default_device() if world() > 1 else found
    # "cuda" means to each of several processes the GPU that is its own.
    return own if own.type == found.type and torch.device(device).index is None else found


def _check_arguments(model: object, data: Mapping[str, object], fit: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"the model is a {type(model).__name__}: give the nn.Module itself, which "
            "shoal.models.load_model builds from a name"
        )
    if fit is not None and not callable(fit):
        raise ConfigError(f"fit is a {type(fit).__name__}: give a function that trains a network")
    for what, loader in data.items():
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise DataError(
                f"the {what} data are a {type(loader).__name__}: give batches that can be read "
                "again and again, such as a list or a DataLoader"
            )


def _captured(model: nn.Module, first: Batch, base: str | None) -> Network:
    """Return an independent capture of the model."""
    if isinstance(model, Network):
        network = model.copy()
    else:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        batch = first.to(device)
        if batch.size < 2:
            raise DataError("a batch of 1 sample cannot be captured: use a batch_size of 2 or more")
        few = batch.first(4)
        args, kwargs = few.args, few.kwargs
        try:
            captured = capture(model, args or kwargs)
        except CaptureError as error:
            if len(args) < 2:
                raise
            raise CaptureError(
                f"{error}; of a batch's {len(args) + 1} items the last is the target, and all "
                "before it are inputs of the model"
            ) from error
        network = captured.copy()
    network.plan.base = base or network.plan.base
    return network


def _check_task(
    network: Network, task: Task, data: Mapping[str, Iterable[Any] | None], trains: bool
) -> list[str]:
    """Check outputs and targets of the first batches; return what may be a mistake, line by line.

    Raises:
        DataError: the targets do not fit the outputs, a sample is NaN, or a loader to judge on has
            a part of the samples alone.
        TrainingError: what the network returns does not show which tensor is meant.
    """
    notes: dict[str, None] = {}
    types: list[torch.dtype] = []
    with eval_mode(network), torch.no_grad():
        for part, loader in data.items():
            if loader is None:
                continue
            if part != "training" and task.judge is None:
                check_whole(loader)
            batch = _first_batch(loader, part).to(device_of(network))
            types = types or [value.dtype for value in batch.inputs]
            for wanted, value in zip(types, batch.inputs, strict=False):
                if value.dtype != wanted:
                    raise DataError(
                        f"the {part} data have inputs of {value.dtype} and the training data of "
                        f"{wanted}: convert them"
                    )
            try:
                output = task.output(network(*batch.args, **batch.kwargs))
                target = task.check(output, batch.target)
                broken = broken_inputs(batch, 0)
                if trains and part == "training":  # a wrong loss would end the first step
                    losses_of(task, output, target, batch.size)
            except DataError as error:
                raise DataError(f"in the {part} data, {error}") from error
            if broken:
                raise DataError(f"in the {part} data, {broken}")
            notes |= dict.fromkeys(task.notes(output, target))
    return list(notes)


def _first_batch(loader: Iterable[Any], what: str) -> Batch:
    first = first_batch(plain(loader))
    if first is None:
        raise DataError(f"the {what} data are empty: give at least one batch with samples")
    return first


def size_of(loader: Iterable[Any] | None) -> int | None:
    """Return how many samples, or else batches, data have, as a run's identity holds it."""
    return None if loader is None else getattr(loader, "num_samples", batch_count(loader))


def _identity(
    model: nn.Module, train: Iterable[Any], val: Iterable[Any], test: Iterable[Any] | None
) -> dict[str, Any]:
    """Return what tells this search from another one: the weights and the sizes of the data."""
    sizes = {"train": size_of(train), "val": size_of(val), "test": size_of(test)}
    return {"weights": state_hash(model), "samples_in": sizes}
