"""A run's folder: what was asked, every finished step, and the result.

Each step is written into a folder of its own under a temporary name, synced and renamed, so a run
that is killed at any moment goes on after its last finished step. The journal is made anew from
the steps; nothing else has to be kept in agreement.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from shoal.distributed import barrier, from_main, is_main
from shoal.errors import DamagedError, RunError, ShoalError
from shoal.files import locked, readable_errors, replace_folder, write_file
from shoal.modes import device_of
from shoal.network import Network
from shoal.network.saving import NETWORK_FILE, read_network, write_network
from shoal.schema import Finite, check_value
from shoal.sealed import FILES, file_digest, read_sealed, read_text, seal, sealed_text, unseal
from shoal.search.at_work import AtWork
from shoal.search.limits import MOST_SLACK
from shoal.search.records import RunRecord, Step
from shoal.search.run_files import (
    AGAIN,
    RESULT,
    STEP,
    TWIN,
    files_of_end,
    read_end,
    read_record,
    read_steps,
    remedied,
)

_LAST_TRAINING = ("final_epochs", "final_lr", "final_recipe")
_FUNCTIONS = {"fit", "evaluate", "loss"}  # of the user's; runs of earlier versions do not say them
_GOALS = {"max_drop": 1, "patience": 1, "remove": 1, "target_latency": -1, "target_macs": -1}
"""What ends a search, and whether more or less of it lets the search go on; None is no limit."""


class Run:
    """A run's folder, opened for one process group.

    Args:
        folder: made if needed.
        identity: what decides the result, as JSON values: options, and hashes of weights and data.
            A folder that was begun with another one is refused. Until the last training was made,
            goals that let the search go on longer are taken, and the last training's options.
        config: what is written to `config.yaml`, for people and for running it again.

    Raises:
        RunError: the folder belongs to another run (names what changed), is in use, holds other
            files, or cannot be written.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.notes: list[str] = []  # what was found damaged and made again
        self._lock: Any = None
        self._at_work = AtWork(folder)
        if is_main():
            try:
                self._open(json.loads(json.dumps(identity)), config)
            except BaseException:
                self.close()
                raise
        barrier()

    # ------------------------------------------------------------------ opening

    def _open(self, identity: dict[str, Any], config: Mapping[str, Any]) -> None:
        with readable_errors(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise RunError(f"'{self.folder}' is a file: give a folder")
            known = self.folder / "identity.json"
            files = self.folder.iterdir() if self.folder.is_dir() and not known.exists() else ()
            if any(not file.name.startswith(".") for file in files):
                raise RunError(
                    f"'{self.folder}' holds files that are not a run's: give an empty or a new "
                    "folder"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if known.exists():
                self._go_on(known, identity, config)
            else:
                # First what makes the folder a run's, should this process end right here.
                write_file(known, sealed_text(identity))
            if not (self.folder / "config.yaml").exists():
                write_file(self.folder / "config.yaml", _yaml(config))
            (self.folder / "steps").mkdir(exist_ok=True)
            self._remove_leftovers()
            steps = read_steps(self.folder, weights=True)
            self._at_work.forget_after(len(steps))
            self._mend_journal(steps)

    def _remove_leftovers(self) -> None:
        """Remove what a killed process left half written; nobody else works in here."""
        for folder in (self.folder, self.folder / "steps"):
            for pattern in (".*.tmp", ".*.old", "*.part"):
                for leftover in folder.glob(pattern):
                    if leftover.is_dir():
                        shutil.rmtree(leftover, ignore_errors=True)
                    else:
                        leftover.unlink(missing_ok=True)
        for finished in (self.folder / "steps").glob("[0-9]*"):
            if finished.name.isdecimal():
                self._at_work.forget(int(finished.name))

    def _take_lock(self) -> None:
        self._lock = locked(self.folder)

    def _go_on(self, known: Path, identity: dict[str, Any], config: Mapping[str, Any]) -> None:
        """Check that the folder was begun alike; goals may be farther until the last training."""
        with remedied("restore it, or choose another folder"):
            before = read_sealed(known)
            for name in (*_GOALS, "slack", "final_epochs"):
                check_value(Finite | None, before.get(name), f"'{known}' is damaged: {name}")
        steps = self.steps()
        if not steps and not self.checkpoint(0).exists():  # there is nothing that could be lost
            before = {}
        if before:
            farther = [name for name in _GOALS if _is_farther(name, before, identity)]
            if _slack_range(identity)[0] >= _slack_range(before)[1]:
                farther.append("slack")
            ended = bool(steps and steps[-1].ended)
            free = () if ended else (*_LAST_TRAINING, *farther)
            self._compare(before, identity, (*free, *(_FUNCTIONS - before.keys())))
        if before != identity:
            write_file(self.folder / "config.yaml", _yaml(config))
            write_file(known, sealed_text(identity))

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any], free: Sequence[str]) -> None:
        before, now = _flat(old), _flat(new)
        changed = [
            "the model or its weights differ"
            if name == "weights"
            else f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
            for name in sorted({*before, *now} - {*free})
            if before.get(name) != now.get(name)
        ]
        if changed:
            more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
            way = "choose another folder"
            if self.folder.name == TWIN:
                way = f"remove '{self.folder}' to train another twin"
            raise RunError(
                f"'{self.folder}' holds a run with other options: {'; '.join(changed[:3])}{more}: "
                f"{way}, or give the same options to go on"
            )

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------ steps

    def checkpoint(self, step: int, part: str = "") -> Path:
        """Return where a training of a step keeps its state; `part` tells several ones apart."""
        return self._at_work.training(step, part)

    def has_begun(self, step: int, part: str = "") -> bool:
        """Whether an interrupted call began a step; or, with `part`, that training of it."""
        return bool(from_main(self._at_work.has_begun(step, part)))

    @property
    def clock_file(self) -> Path:
        """Where a run with a budget of time keeps what it has spent."""
        return self.folder / "seconds.txt"

    def forget_training(self, step: int, part: str = "") -> None:
        """Remove the state of a step's trainings, or of a `part`, which must not be continued."""
        if is_main():
            self._at_work.forget_trainings(step, part)
        barrier()

    def recall(self, step: int, name: str, measure: Callable[[], Any]) -> Any:
        """Return what a step measured when it was begun; measure and keep it if it was not.

        So a step that was interrupted decides alike when it is done again. `measure` is called at
        most once, in every process, and gives the same JSON values in all.
        """
        path = self._at_work.measured(step)
        known = from_main(self._recalled(step) if is_main() else {})
        if name not in known:
            known = json.loads(json.dumps({**known, name: measure()}))
            if is_main():
                write_file(path, sealed_text(known, finite=False))
        return known[name]

    def _recalled(self, step: int) -> dict[str, Any]:
        path = self._at_work.measured(step)
        if not path.exists():
            return {}
        try:
            return read_sealed(path, required=True, finite=False)
        except DamagedError as error:
            # What is measured anew may be decided otherwise, and trained otherwise.
            self._at_work.forget(step)
            self.notes.append(f"{error}: step {step} is begun anew")
            return {}

    def steps(self) -> list[Step]:
        """Return the finished steps in order, the dense network first."""
        return read_steps(self.folder)

    def judge(self, steps: Sequence[Step]) -> None:
        """Write down anew which steps are good enough, where that has changed."""
        for old, new in zip(self.steps(), steps, strict=True):
            if is_main() and old.within != new.within:
                place = self.folder / "steps" / f"{new.step:03d}"
                write_file(place / STEP, _step_text(new, place))
        barrier()

    def save_step(self, step: Step, network: Network) -> None:
        """Write a finished step with its network, and drop the state of its training."""
        if is_main():

            def fill(folder: Path) -> None:
                write_network(network, folder)
                (folder / STEP).write_text(_step_text(step, folder), encoding="utf-8")

            replace_folder(self.folder / "steps" / f"{step.step:03d}", fill)
            self._at_work.forget(step.step)
            self._write_journal()
        barrier()

    def load_step(self, number: int, base: Network) -> Network:
        """Return the network of a finished step, on the device of the captured original."""
        return self._load(self.folder / "steps" / f"{number:03d}", base)

    def _load(self, folder: Path, base: Network) -> Network:
        try:
            return read_network(folder).to(device_of(base))
        except ShoalError as error:
            raise RunError(f"a network of the run is damaged: {error}") from error

    def _write_journal(self) -> None:
        write_file(self.folder / "journal.jsonl", _journal(self.steps()))

    def _mend_journal(self, steps: Sequence[Step]) -> None:
        """Write the journal anew where it is not what the steps say; a torn last line is usual."""
        path, text = self.folder / "journal.jsonl", _journal(steps)
        if not steps and not path.exists():
            return
        try:
            found = read_text(path) if path.exists() else ""
        except DamagedError as error:
            found = ""
            self.notes.append(f"{error}: it was written anew from the steps")
        for number, line in enumerate(found.splitlines()[:-1], start=1):
            try:
                unseal(line, f"line {number} of '{path}'")
            except DamagedError as error:
                self.notes.append(f"{error}: it was written anew from the steps")
                break
        if found != text:
            write_file(path, text)

    # ------------------------------------------------------------------ the result

    def ended(
        self, base: Network, steps: Sequence[Step], stopped: str, *, energy: bool, int8: bool
    ) -> tuple[RunRecord, Network] | None:
        """Return record and merged result, if the folder holds the whole end of these steps.

        `stopped` is why they ended; `energy` and `int8` say whether these have to be known.
        """
        found = None
        if is_main() and (self.folder / RESULT).exists():
            try:
                record = read_end(self.folder, whole=True)
                alike = list(record.steps) == list(steps) and record.stopped == stopped
                alike = alike and bool(record.energy or not energy)
                found = self._end(base) if alike and (record.int8 is not None or not int8) else None
            except ShoalError as error:
                reason = str(error).removesuffix(f": {AGAIN}")
                self.notes.append(f"{reason}: the end of the run was made again")
        # The others have measured other latencies of their own, and their steps took other seconds.
        if from_main(found is not None) and found is None:
            found = self._end(base)
        barrier()  # nobody changes what another process still reads
        return found

    def why_ended(self, steps: Sequence[Step]) -> str:
        """Return why a search of these steps ended before, if the folder holds its end."""
        found = ""
        if is_main() and (self.folder / RESULT).exists():
            with suppress(ShoalError):  # damaged: it is made again
                record = read_record(self.folder)
                found = record.stopped if list(record.steps) == list(steps) else ""
        return from_main(found)

    def _end(self, base: Network) -> tuple[RunRecord, Network]:
        return read_record(self.folder), self._load(self.folder / "merged", base).eval()

    def keep_best(self, best: Network) -> None:
        """Write `best/`, the result as it was trained, before anything is measured."""
        if is_main():
            # What an earlier end of the search wrote must not be taken for this one's.
            (self.folder / RESULT).unlink(missing_ok=True)
            self._write_journal()
            replace_folder(self.folder / "best", lambda folder: write_network(best, folder))
        barrier()

    def finish(self, record: RunRecord, best: Network, merged: Network, int8: Path) -> None:
        """Write `merged/`, `best/` anew with what was measured, and, last of all, `result.json`.

        For the main process alone. The folder `int8` holds the files of the result in int8, which
        are copied.
        """
        for name, network in (("best", best), ("merged", merged)):
            replace_folder(self.folder / name, partial(write_network, network))
        kept = self.folder / "int8"
        if record.int8:
            replace_folder(kept, partial(_copy_files, int8))
        elif kept.exists():  # of an earlier end
            shutil.rmtree(kept)
        files = {FILES: files_of_end(self.folder)}
        write_file(self.folder / RESULT, sealed_text({**record.to_dict(), **files}))
        self._at_work.clear()


def _step_text(step: Step, folder: Path) -> str:
    """Return what `step.json` says of a step whose network is in a folder."""
    files = {NETWORK_FILE: file_digest(folder / NETWORK_FILE)}
    return sealed_text({**step.to_dict(), FILES: files})


def _journal(steps: Sequence[Step]) -> str:
    return "".join(f"{json.dumps(seal(step.to_dict()))}\n" for step in steps)


def _copy_files(source: Path, target: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, target / file.name)


# ---------------------------------------------------------------------- identity


def _is_farther(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a goal lets the search go on at least as long as it did."""
    old, new = before.get(name), now.get(name)
    return new is None or (old is not None and _GOALS[name] * (new - old) >= 0)


def _slack_range(identity: Mapping[str, Any]) -> tuple[float, float]:
    """Return the least and the most that the slack of a run can be."""
    given, learnt = identity.get("slack"), MOST_SLACK if identity.get("final_epochs") else 0.0
    return (0.0, learnt) if given is None else (given, given)


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
