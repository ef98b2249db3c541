"""Do a job: read its data, build its model, and search."""

from __future__ import annotations

from pathlib import Path

from shoal.data import DataSet, data_sets
from shoal.data.dataset import check_name
from shoal.errors import ConfigError
from shoal.merge.loading import is_pushed
from shoal.options import DataOptions
from shoal.search.compress import compress, method_of, working_device
from shoal.search.job import Job
from shoal.search.job_model import (
    Say,
    build,
    new_last_layer,
    random_weights,
    read_for,
    spec_for,
    weights_advice,
)
from shoal.search.records import Result
from shoal.search.setup import Listener, Meter
from shoal.user_paths import user_path


def check_job(job: Job) -> None:
    """Raise what is wrong with a job, as far as that can be known without reading anything.

    Raises:
        ShoalError: there is no such criterion, runtime or kind of data, or its model is a result.
    """
    method_of(job.settings)
    check_name(job.data)
    if is_pushed(job.model):
        raise ConfigError(
            f"'{job.model}' is a network that shoal made, merged already: give the model it was "
            "made of"
        )
    if user_path(job.model).is_dir():
        raise ConfigError(
            f"'{job.model}' is a folder, and compress takes a model: to continue a run, give its "
            "own command again"
        )


def run_job(
    job: Job, out: Path, listener: Listener, *, meter: Meter | None = None, say: Say
) -> Result:
    """Do a job in a folder, or go on with it there.

    Args:
        job: what to do.
        out: the run's folder.
        listener: told of the progress.
        meter: measures what training takes.
        say: told what the user should know before the search begins.

    Raises:
        ShoalError: one line on what is wrong, before the data are read where that can be known.
    """
    check_job(job)
    device = working_device(job.settings.machine.device)
    job, data = read_for(job, device)
    spec = spec_for(job.model, data, pretrained=job.pretrained, say=say)
    model = build(spec, job.checkpoint, job.reading.seed, say=say)
    for line in (f"{job.model} on {device}", data.describe()):
        say(line)
    for note in (*job.notes, *_notes(job, data)):
        say(f"note: {note}")
    return compress(
        model,
        data.train,
        data.val,
        job.settings,
        test=data.test,
        out=out,
        base=spec.text,
        about={**data.facts(), "data": data.short_name},
        listener=listener,
        config=job.about(),
        identity=job.identity(),
        meter=meter,
    )


def _unused(job: Job) -> list[str]:
    """Return a line for each option of reading that was given beside a factory in vain."""
    if job.data.partition(":")[0] in data_sets:
        return []
    usual = DataOptions()
    return [
        f"{name} does not apply to the data factory {job.data}: its loaders decide"
        for name in ("batch_size", "eval_batch_size", "workers", "skip_broken")
        if getattr(job.reading, name) != getattr(usual, name)
    ]


def _notes(job: Job, data: DataSet) -> list[str]:
    """Return what to say where one validation sample decides, or weights are random."""
    notes = [*data.notes, *_unused(job)]
    limits = job.settings.search
    count = getattr(data.val, "num_samples", None)
    by_sample = job.settings.task.quality_name in ("top-1", "accuracy")
    if by_sample and count and 0.0 < limits.max_drop < 100.0 / count:
        notes.append(
            f"with {count} validation samples one is {100.0 / count:.2g} points, more than the "
            f"{limits.max_drop:g} of --max-drop: give more of them"
        )
    if limits.dense_epochs:
        return notes
    if random_weights(job.model, job.checkpoint, job.pretrained):
        advice = f"give {weights_advice(job.model)}, or --dense-epochs to train it first"
        notes.append(f"{job.model} has random weights: {advice}")
    elif new_last_layer(job.model, job.checkpoint, data):
        notes.append(
            f"published weights are for other classes than these {data.num_classes}: the last "
            "layer is new, so give --dense-epochs to train it first"
        )
    return notes
