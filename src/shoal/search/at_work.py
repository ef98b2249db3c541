"""What steps that are not finished keep in a run's folder: states of trainings, measurements.

The states of last trainings have the number of the next step, which may itself be tried again.
"""

from __future__ import annotations

from pathlib import Path

_LAST = "last-"  # begins the part of a last training


def last_part(begun: int) -> str:
    """Return what tells the last training of a step's network from others of the same number."""
    return f"{_LAST}{begun}"


class AtWork:
    """The files of unfinished steps in a run's folder, by the step's number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def training(self, step: int, part: str = "") -> Path:
        """Return where a training of a step keeps its state; `part` tells several ones apart."""
        return self.folder / f"training-{step:03d}{part and f'-{part}'}.pt"

    def measured(self, step: int) -> Path:
        """Return where a step keeps what it measured."""
        return self.folder / f"measured-{step:03d}.json"

    def has_begun(self, step: int, part: str = "") -> bool:
        """Whether a step was begun; or, with `part`, that training of it."""
        if part:
            return self.training(step, part).exists()
        return self.measured(step).exists() or bool(self._trainings(step))

    def forget_trainings(self, step: int, part: str = "") -> None:
        """Remove the states of a step's trainings, or of a `part`."""
        _remove(*([self.training(step, part)] if part else self._trainings(step)))

    def forget(self, step: int) -> None:
        """Remove all that a finished step needed, and what was begun in its place."""
        _remove(self.measured(step), *self.folder.glob(f"training-{step:03d}*.pt"))

    def forget_after(self, step: int) -> None:
        """Remove what later steps left: that of this number may change another network.

        There are such where somebody removed a damaged step.
        """
        for pattern in ("training-*.pt", "measured-*.json"):
            for path in self.folder.glob(pattern):
                number = path.stem.split("-")[1]
                if number.isdecimal() and int(number) > step:
                    _remove(path)

    def clear(self) -> None:
        """Remove the states of all trainings: of steps that failed, once the search has ended."""
        _remove(*self.folder.glob("training-*.pt"))

    def _trainings(self, step: int) -> list[Path]:
        """Return the states of a step's trainings, but for those of last trainings."""
        found = self.folder.glob(f"training-{step:03d}*.pt")
        return [path for path in found if f"-{_LAST}" not in path.name]


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
