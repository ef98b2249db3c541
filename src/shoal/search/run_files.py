"""Read what a run's folder holds; whatever is damaged is named, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from shoal.errors import DamagedError, RunError, ShoalError
from shoal.network.saving import NETWORK_FILE, REMEDY, WHOLE, check_network
from shoal.sealed import FILES, check_file, file_digest, read_sealed, read_yaml
from shoal.search.records import RunRecord, Step, chosen
from shoal.user_paths import user_path

T = TypeVar("T")

RESULT, STEP = "result.json", "step.json"
TWIN = "twin"
"""The folder of the twin in its run's, and what stands for its method; see `search.twin`."""
_ENDS = ("best", "merged")
AGAIN = "give the run's command again, which makes it anew"


def read_run(folder: str | Path) -> RunRecord:
    """Read the record of a run, finished or not; nothing in its folder is changed.

    Raises:
        RunError: the folder is not a run's, has no finished step yet, or is damaged.
    """
    path = user_path(folder)
    if not path.is_dir():
        raise RunError(f"there is no folder '{path}': give the folder of a run")
    if (path / RESULT).exists():
        return read_end(path)
    if not (path / "identity.json").exists():
        raise RunError(f"'{path}' is not a run's folder: give the folder of a run")
    steps = read_steps(path)
    if not steps:
        raise RunError(f"the run in '{path}' has no finished step yet: wait, or start it again")
    best = chosen(steps)
    return RunRecord(
        dense=steps[0].metrics,
        final=best.metrics,
        steps=tuple(steps),
        removed=best.removed,
        total=best.total,
        unit=best.unit,
        folder=path,
        latency_batch=_latency_batch(path),
    )


def read_end(folder: Path, *, whole: bool = False, remedy: str = AGAIN) -> RunRecord:
    """Read a finished run's record, and check that the folder holds the networks it speaks of.

    A finished run of an early version has no `best` or `merged`; `whole` wants both. `remedy` is
    what to do about a damaged one.
    """
    record, values = _result(folder, remedy)
    with remedied(remedy):
        for name in _ENDS:
            if whole or (folder / name).exists():
                check_file(folder / RESULT, values, f"{name}/{NETWORK_FILE}")
                check_network(folder / name)
        for file in (path for path in values.get(FILES, {}) if path.startswith("int8/")):
            check_file(folder / RESULT, values, file)
    return record


def read_record(folder: Path) -> RunRecord:
    """Read `result.json` alone."""
    return _result(folder)[0]


def twin_of(record: RunRecord) -> RunRecord | None:
    """Return the finished twin in a run's folder; None if there is none, or of another result.

    A run may go on and end with another network after its twin was trained.
    """
    folder = None if record.folder is None else record.folder / TWIN
    if folder is None or not record.finished or not (folder / RESULT).exists():
        return None
    same = _layers_of(folder, _twin_again(folder)) == _layers_of(folder.parent, AGAIN)
    return _result(folder, _twin_again(folder))[0] if same else None


def readable_twin(record: RunRecord, *, whole: bool = False) -> tuple[RunRecord | None, list[str]]:
    """Return the twin as `twin_of` does; of a damaged one None, and a note on what to do.

    The run itself can be shown all the same. `whole` wants the twin's networks intact, too.
    """
    try:
        found = twin_of(record)
        if whole and found is not None and found.folder is not None:
            read_end(found.folder, remedy=_twin_again(found.folder))
    except ShoalError as error:
        return None, [f"the twin is not shown: {error}"]
    return found, []


def _twin_again(folder: Path) -> str:
    return f"remove '{folder}' and give `shoal twin` again"


def _layers_of(run: Path, remedy: str) -> list[Any]:
    """Return what a run's result computes, whatever its weights."""
    path = run / "best" / NETWORK_FILE
    with remedied(remedy):
        values = read_sealed(path)
    return [values.get(name) for name in ("inputs", "outputs", "nodes", "modules")]


def _result(folder: Path, remedy: str = AGAIN) -> tuple[RunRecord, dict[str, Any]]:
    path = folder / RESULT
    with remedied(remedy):
        values = read_sealed(path)
        record = _read(path, lambda: RunRecord.from_dict({**values, "folder": folder}))
        _read(path, lambda: _check_steps(record.steps))
    return record, values


def files_of_end(folder: Path) -> dict[str, str]:
    """Return the checksums that `result.json` keeps: of the descriptions of the networks, and int8.

    A description holds that of its weights.
    """
    names = [f"{name}/{NETWORK_FILE}" for name in _ENDS]
    names += sorted(f"int8/{path.name}" for path in (folder / "int8").glob("*"))
    return {name: file_digest(folder / name) for name in names}


def read_steps(folder: Path, *, weights: bool = False) -> list[Step]:
    """Read the finished steps, and check that their networks are theirs; `weights` are read too."""
    found: list[Step] = []
    for number, place in enumerate(sorted((folder / "steps").glob("[0-9]*"))):
        if place.name != f"{number:03d}":
            raise RunError(
                f"step {number} is missing in '{folder}': restore it, or remove the folders of the "
                "steps after it and give the run's command again, which makes them anew"
            )
        with remedied(_redo(number)):
            found.append(read_step(place))
            if weights:
                check_network(place)
    with remedied(_redo(len(found) - 1)):
        _read(folder / "steps", lambda: _check_steps(found))
    return found


def read_step(place: Path) -> Step:
    """Read the record in a step's folder, whose network must be the one it was written with."""
    path = place / STEP
    values = read_sealed(path)
    check_file(path, values, NETWORK_FILE)
    return _read(path, lambda: Step.from_dict(values))


def _check_steps(steps: Sequence[Step]) -> None:
    """Raise `RunError` unless steps are numbered in order, each made of one before it."""
    for number, step in enumerate(steps):
        before = step.begun_from
        if step.step != number or (before is not None and before >= number):
            raise RunError(f"step {number} has the number {step.step} and was made of {before}")
    if steps and not any(step.within for step in steps):
        raise RunError("no step is good enough, not even the dense network")


def _redo(number: int) -> str:
    where = f"the folders of step {number} and later" if number else "the whole folder"
    return f"restore it, or remove {where} and give the run's command again, which makes them anew"


def _read(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (RunError, DamagedError) as error:
        raise DamagedError(f"'{path}': {error}") from error


@contextmanager
def remedied(what: str) -> Iterator[None]:
    """Add what to do to the error for a damaged file."""
    try:
        yield
    except ShoalError as error:
        text = str(error).removesuffix(f": {REMEDY}").removesuffix(f": {WHOLE}")
        raise RunError(text if "update shoal" in text else f"{text}: {what}") from error


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return what `config.yaml` says, which is the user's to edit; nothing if it cannot be read."""
    try:
        found = read_yaml(folder / "config.yaml")
    except DamagedError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _latency_batch(folder: Path) -> tuple[int, ...] | None:
    batch = read_config(folder).get("latency_batch")
    sizes: tuple[Any, ...] = tuple(batch) if isinstance(batch, list) else (batch,)
    return sizes if all(type(size) is int and size > 0 for size in sizes) else None
