"""A run's folder: what was asked, every finished step, and the result.

Each step is written into a folder of its own under a temporary name, synced and renamed, so a run
that is killed at any moment goes on after its last finished step. The journal is made anew from
the steps; nothing else has to be kept in agreement.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shoal.distributed import barrier, from_main, is_main
from shoal.errors import RunError, ShoalError
from shoal.files import readable_errors, replace_folder, write_file
from shoal.merge.report import MergeReport
from shoal.modes import device_of
from shoal.network import Network
from shoal.network.saving import read_network, write_network
from shoal.search.ending import Ending
from shoal.search.records import Metrics, Step

__all__ = ["Run"]

try:
    import fcntl
except ImportError:  # no file locks on this system
    fcntl = None  # type: ignore[assignment]


_LAST_TRAINING = ("final_epochs", "final_lr")


class Run:
    """A run's folder, opened for one process group.

    Args:
        folder: made if needed.
        identity: what decides the result, as JSON values: options, and hashes of weights and data.
            A folder that was begun with another one is refused, but for the options of the last
            training as long as that was not made.
        config: what is written to `config.yaml`, for people and for running it again.

    Raises:
        RunError: the folder belongs to another run (names what changed), is in use, holds other
            files, or cannot be written.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], config: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self._lock: Any = None
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
                raise RunError(f"'{self.folder}' is a file: give a folder to --out")
            known = self.folder / "identity.json"
            if self.folder.is_dir() and not known.exists() and self._foreign_files():
                raise RunError(
                    f"'{self.folder}' holds files that are not a run's: give an empty or a new "
                    "folder to --out"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if known.exists():
                self._go_on(known, identity, config)
            else:
                # First what makes the folder a run's, should this process end right here.
                write_file(known, json.dumps(identity, indent=2) + "\n")
            if not (self.folder / "config.yaml").exists():
                write_file(self.folder / "config.yaml", _yaml(config))
            (self.folder / "steps").mkdir(exist_ok=True)
            self._remove_leftovers()

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
            self.checkpoint(int(finished.name)).unlink(missing_ok=True)
            self._measured(int(finished.name)).unlink(missing_ok=True)

    def _foreign_files(self) -> bool:
        return any(not entry.name.startswith(".") for entry in self.folder.iterdir())

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"another process is at work in '{self.folder}': wait for it, or choose another "
                "folder"
            ) from None

    def _go_on(self, known: Path, identity: dict[str, Any], config: Mapping[str, Any]) -> None:
        """Check that the folder was begun alike; the last training is open until it was made."""
        before = _read_json(known)
        steps = self.steps()
        if not steps and not self.checkpoint(0).exists():  # there is nothing that could be lost
            before = {}
        free = () if steps and steps[-1].operation == "fine-tune" else _LAST_TRAINING
        if before:
            self._compare(
                {name: value for name, value in before.items() if name not in free},
                {name: value for name, value in identity.items() if name not in free},
            )
        if before != identity:
            write_file(self.folder / "config.yaml", _yaml(config))
            write_file(known, json.dumps(identity, indent=2) + "\n")

    def _compare(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        before, now = _flat(old), _flat(new)
        changed = [
            "the model or its weights were others"
            if name == "weights"
            else f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if changed:
            more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
            raise RunError(
                f"'{self.folder}' was begun otherwise: {'; '.join(changed[:3])}{more}: "
                "choose another folder, or give the same options to go on"
            )

    def close(self) -> None:
        """Give the folder free for other processes."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------ steps

    def checkpoint(self, step: int) -> Path:
        """Return where the training of a step keeps its state while it goes on."""
        return self.folder / f"training-{step:03d}.pt"

    def forget_training(self, step: int) -> None:
        """Remove the state of a training that is not to be gone on with."""
        if is_main():
            self.checkpoint(step).unlink(missing_ok=True)
        barrier()

    def recall(self, step: int, name: str, measure: Callable[[], Any]) -> Any:
        """Return what a step measured when it was begun; measure and keep it if it was not.

        A step that was interrupted so decides the same when it is begun again.

        Args:
            step: its number.
            name: of what is measured.
            measure: called at most once, in every process; gives the same JSON values in all.
        """
        path = self._measured(step)
        known = from_main(_read_json(path) if is_main() and path.exists() else {})
        if name not in known:
            known = json.loads(json.dumps({**known, name: measure()}))
            if is_main():
                write_file(path, json.dumps(known) + "\n")
        return known[name]

    def _measured(self, step: int) -> Path:
        return self.folder / f"measured-{step:03d}.json"

    def steps(self) -> list[Step]:
        """Return the finished steps in order, the dense network first."""
        found: list[Step] = []
        folders = sorted((self.folder / "steps").glob("[0-9]*"))
        for number, folder in enumerate(folders):
            if int(folder.name) != number:
                raise RunError(
                    f"step {number} is missing in '{self.folder}': the folder is damaged; begin "
                    "in another one"
                )
            found.append(Step.from_dict(_read_json(folder / "step.json")))
        return found

    def save_step(self, step: Step, network: Network) -> None:
        """Write a finished step with its network, and drop the state of its training."""
        if is_main():
            target = self.folder / "steps" / f"{step.step:03d}"

            def fill(folder: Path) -> None:
                write_network(network, folder)
                (folder / "step.json").write_text(json.dumps(step.to_dict(), indent=2) + "\n")

            replace_folder(target, fill)
            self.checkpoint(step.step).unlink(missing_ok=True)
            self._measured(step.step).unlink(missing_ok=True)
            self._write_journal()
        barrier()

    def load_step(self, number: int, base: Network) -> Network:
        """Return the network of a finished step.

        Args:
            number: the step.
            base: the captured original, on whose device it is put.
        """
        return self._load(self.folder / "steps" / f"{number:03d}", base)

    def _load(self, folder: Path, base: Network) -> Network:
        try:
            return read_network(folder).to(device_of(base))
        except ShoalError as error:
            raise RunError(f"a step of the run is damaged: {error}") from error

    def _write_journal(self) -> None:
        lines = [json.dumps(step.to_dict()) for step in self.steps()]
        write_file(self.folder / "journal.jsonl", "".join(f"{line}\n" for line in lines))

    # ------------------------------------------------------------------ the result

    def ended(
        self, base: Network, steps: Sequence[Step], stopped: str, *, energy: bool
    ) -> Ending | None:
        """Return what the end of the search gave, if it is in the folder, whole and of these steps.

        Args:
            base: the captured original, on whose device it is put.
            steps: all steps of the search.
            stopped: why it ended.
            energy: whether energy has to be known.
        """
        found = None
        if is_main():  # the others have measured other latencies of their own
            try:
                found = self._ending(base) if self._is_of(steps, stopped, energy) else None
            except ShoalError:  # damaged: it is made anew
                found = None
        if from_main(found is not None) and found is None:
            found = self._ending(base)
        barrier()  # nobody changes what another process still reads
        return found

    def _is_of(self, steps: Sequence[Step], stopped: str, energy: bool) -> bool:
        """Whether the folder holds the end of a search of these steps."""
        if not all((self.folder / name).exists() for name in ("result.json", "best", "merged")):
            return False
        result = _read_json(self.folder / "result.json")
        now = json.dumps([step.to_dict() for step in steps])
        if json.dumps(result.get("steps")) != now or result.get("stopped") != stopped:
            return False
        return {"merge", "latency", *(["energy"] if energy else [])} <= set(result)

    def _ending(self, base: Network) -> Ending:
        result = _read_json(self.folder / "result.json")
        return Ending(
            merged=self._load(self.folder / "merged", base).eval(),
            report=MergeReport.from_dict(result["merge"]),
            latency=result["latency"],
            energy=result.get("energy", {}),
        )

    def keep_best(self, best: Network) -> None:
        """Write `best/`, the result as it was trained, before anything is measured."""
        if is_main():
            # What an earlier end of the search wrote must not be taken for this one's.
            (self.folder / "result.json").unlink(missing_ok=True)
            self._write_journal()
            replace_folder(self.folder / "best", lambda folder: write_network(best, folder))
        barrier()

    def finish(
        self,
        ending: Ending,
        dense: Metrics,
        final: Metrics,
        steps: Sequence[Step],
        *,
        removed: int,
        total: int,
        unit: str,
        stopped: str,
        notes: Sequence[str],
    ) -> None:
        """Write `merged/` and, last of all, `result.json`; for the main process alone."""
        replace_folder(self.folder / "merged", lambda folder: write_network(ending.merged, folder))
        result = {
            "dense": dense.to_dict(),
            "final": final.to_dict(),
            "steps": [step.to_dict() for step in steps],
            "removed": removed,
            "total": total,
            "unit": unit,
            "stopped": stopped,
            "latency": dict(ending.latency),
            "merge": ending.report.to_dict(),
            "notes": list(notes),
        }
        if ending.energy:
            result["energy"] = dict(ending.energy)
        write_file(self.folder / "result.json", json.dumps(result, indent=2) + "\n")
        for unfinished in self.folder.glob("training-*.pt"):  # of a step that failed
            unfinished.unlink(missing_ok=True)


# ---------------------------------------------------------------------- helpers


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"'{path}' is missing or damaged: {error}") from error
    if not isinstance(value, dict):
        raise RunError(f"'{path}' is damaged: it holds no record")
    return value


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
