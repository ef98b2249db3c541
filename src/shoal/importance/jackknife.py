"""How far a score from a part of the data may be from the score on all of it.

The samples are dealt in turn to groups, and the score is computed without each of the groups (the
jackknife, Efron 1982). Data are often in the order of their classes; neighbouring samples then are
of one class, and neighbouring groups differ by chance alone. So their difference gives the error,
without what distinguishes the classes.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor

__all__ = ["GROUPS", "leave_one_out", "standard_error"]

GROUPS = 32
_FEWEST = 16  # groups; an error from fewer pairs is itself too uncertain


def leave_one_out(sums: Tensor) -> Tensor:
    """Return the total without each of the groups, from what each adds, `[groups, …]`."""
    return sums.sum(0) - sums


def standard_error(without: Tensor, share: float) -> float | None:
    """Return the standard error of a score, or None where there are too few groups.

    Args:
        without: the score without each of the groups, shape [groups].
        share: the part of all data that was used, 0 to 1; the variance shrinks by 1 − share.
    """
    groups, pairs = len(without), len(without) // 2
    if groups < _FEWEST:
        return None
    differences = without[: 2 * pairs : 2] - without[1 : 2 * pairs : 2]
    # A score without a group differs from the whole by the group's part over g − 1.
    mean = float(differences.square().mean())
    return sqrt(max(0.0, 1.0 - share) * mean * groups / 2) * (groups - 1) / groups
