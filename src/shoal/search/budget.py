"""A budget of working time: what a run has spent, and whether what is still to come fits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.distributed import from_main, is_main
from shoal.files import write_file
from shoal.search.at_work import last_part
from shoal.search.limits import candidates
from shoal.search.options import SearchOptions
from shoal.search.records import Step

if TYPE_CHECKING:
    from shoal.search.run import Run

_END_SECONDS = 150.0  # for merging the result; and no measurement is begun after 120 s there
_END_SHARE = 0.25  # of the hours that this takes at most: what takes minutes there ends sooner
_RESERVED = 2  # last trainings: of the fastest candidate, and of a slower one if that fails


class Clock:
    """Counts the seconds that a run works, those of earlier calls too.

    Args:
        path: a file that keeps them, up to the last `keep`; None counts those of this call only.
        began: when this call began, by `time.monotonic`; None is now.
    """

    def __init__(self, path: Path | None = None, began: float | None = None) -> None:
        self._path = path
        self._began = time.monotonic() if began is None else began
        self._before = 0.0
        if path is not None:
            with suppress(OSError, ValueError):  # no file yet, or it is damaged
                found = float(path.read_text())
                self._before = found if 0.0 <= found < 1e9 else 0.0

    def at_least(self, seconds: float) -> None:
        """Count so many seconds of earlier calls at least: what their steps are known to take."""
        self._before = max(self._before, seconds)

    @property
    def seconds(self) -> float:
        """Seconds of work so far."""
        return self._before + time.monotonic() - self._began

    def keep(self) -> None:
        """Write them down, so that they count after an interruption."""
        if self._path is not None and is_main():
            write_file(self._path, f"{self.seconds:.1f}\n")


@dataclass(frozen=True)
class Budget:
    """Plans a search for the hours that it may take, by what its steps took.

    A step is begun while it leaves time for the end and two last trainings, or one if there is but
    one candidate: the longest step so far tells how long a step takes, the latest one how long an
    epoch. Further last trainings, which bisect the candidates, are made while there is time.
    """

    options: SearchOptions
    clock: Clock
    run: Run | None = None  # whose folder tells what an interrupted call began, which goes on

    @property
    def name(self) -> str:
        """The budget in words, which is also why a search ends by it."""
        return f"the budget of {self.options.hours:g} hours"

    def has_room(self, seconds: float) -> bool:
        """Whether there is time for something before the end."""
        assert self.options.hours is not None
        whole = 3600.0 * self.options.hours
        end = min(_END_SECONDS, _END_SHARE * whole)
        # Each process has its own clock.
        return bool(from_main(seconds + end <= whole - self.clock.seconds))

    def why_stop(self, steps: Sequence[Step]) -> str:
        """Return the budget's name if there is no time for another step, or an empty string."""
        if self.run is not None and self.run.has_begun(len(steps)):
            return ""
        epoch = self.options.epochs * _epoch_seconds(steps)  # all that is known before the first
        step = max((step.seconds for step in _loop(steps)), default=epoch)
        return "" if self.has_room(step + self.reserved(steps)) else self.name

    def reserved(self, steps: Sequence[Step]) -> float:
        """Return the seconds that the last trainings will take."""
        if self.options.final_epochs == 0:
            return 0.0
        count = len(candidates(self.options, steps)) or 1
        return self.last_training(steps) * min(_RESERVED, count)

    def last_training(self, steps: Sequence[Step]) -> float:
        """Return the seconds that one last training will take, with what is measured after it."""
        epoch = _epoch_seconds(steps)
        # A step has more to do after its training than a last training has.
        known = [step for step in steps if step.ended] or _loop(steps)
        measuring = min(
            (s.seconds - s.epochs * (s.epoch_seconds or 0.0) for s in known), default=0.0
        )
        return self.options.final_epochs * epoch + max(0.0, measuring)

    def allows(self, candidate: Step, steps: Sequence[Step]) -> bool:
        """Whether there is time for the last training of a candidate."""
        begun = self.run is not None and self.run.has_begun(len(steps), last_part(candidate.step))
        return begun or self.has_room(self.last_training(steps))

    def plan(self, steps: Sequence[Step]) -> str:
        """Return what the search will do, in a line; there must be a step besides dense."""
        loop = _loop(steps)
        longest = _spelled(max(step.seconds for step in loop))
        if len(loop) == 1 and self.why_stop(steps):
            return (
                f"a single step took {longest}, and {self.name} has no room for another one: raise "
                "hours, or lower epochs or train_samples"
            )
        last = ""
        if self.options.final_epochs:
            epoch, epochs = _spelled(_epoch_seconds(steps)), self.options.final_epochs
            last = f"last trainings ({epochs} epochs of {epoch}) and "
        return (
            f"{self.name}: steps of up to {longest} are begun while they leave {last}the end time"
        )


def _loop(steps: Sequence[Step]) -> list[Step]:
    return [step for step in steps[1:] if not step.ended]


def _epoch_seconds(steps: Sequence[Step]) -> float:
    known = (step.epoch_seconds for step in reversed(steps) if step.epoch_seconds is not None)
    return next(known, 0.0)


def _spelled(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
