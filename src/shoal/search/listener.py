"""What a search tells whoever watches it."""

from __future__ import annotations

from shoal.search.records import Step
from shoal.training import BatchReport, EpochReport

__all__ = ["Listener"]


class Listener:
    """Hears of a search's progress; this one says nothing. Subclass it to show something."""

    def plan(self, steps: int | None) -> None:
        """Hear how many steps there can be at most; None if nobody can know."""

    def stage(self, step: int, text: str) -> None:
        """Hear what begins now: "score", "fine-tune", "evaluate", …."""

    def scored(self, done: int, total: int) -> None:
        """Hear that `done` of `total` batches are scored (0 if the total is not known)."""

    def batch(self, report: BatchReport, epochs: int) -> None:
        """Hear of an optimizer step in a training of so many epochs."""

    def epoch(self, report: EpochReport, epochs: int) -> None:
        """Hear of a finished epoch."""

    def step(self, step: Step, resumed: bool) -> None:
        """Hear of a finished step; `resumed` if it was finished by an earlier run."""

    def note(self, text: str) -> None:
        """Hear something the user should know."""
