"""Successive halving: find the cheapest of many without measuring the others to the end.

Whenever the samples have doubled, those contestants drop out that are clearly worse than the
wanted ones and, as late as the number of samples allows, the worse half (Jamieson & Talwalkar
2016, after the sequential halving of Karnin et al. 2013). Once only the wanted ones are left, the
race is over.

Some samples cost more than others for everyone. So a contestant that dropped out is judged by how
far it was behind the last of the wanted ones on the samples that both met, and by what that one
costs on all of its own: it never comes before all that stayed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.errors import OptionError

__all__ = ["SuccessiveHalving"]

_FIRST_CHECK = 100  # samples before anyone may drop out; then at each doubling
_CLEARLY = 3.0  # standard errors of the difference


class SuccessiveHalving:
    """Decides which contestants run on, from the mean costs so far and their variances.

    Args:
        weights: of each contestant; the race is decided by the costs times these.
        groups: of each contestant; each group has a race of its own.
        keep: how many of the best of each group are wanted; None keeps all.

    Raises:
        OptionError: `keep` is below 1.

    Attributes:
        running: the contestants that have not dropped out, by number.
    """

    def __init__(self, weights: Sequence[float], groups: Sequence[str], keep: int | None) -> None:
        if keep is not None and keep < 1:
            raise OptionError("keep", keep, "at least 1, or None to score all on all data")
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._groups = list(groups)
        self._keep = keep
        self._next_check = _FIRST_CHECK
        self._behind: dict[int, tuple[int, float]] = {}  # behind whom, how far
        self.running = list(range(len(self._groups)))

    def due(self, seen: int) -> bool:
        """Whether to check now, after `seen` samples; the next time is when they have doubled."""
        if seen < self._next_check:
            return False
        self._next_check = 2 * seen
        return self._keep is not None

    def drop_out(self, costs: Tensor, variances: Tensor, seen: int, expected: int | None) -> None:
        """Drop those that are clearly behind and, where it is time, the worse half.

        Args:
            costs: the mean cost of each contestant over the samples it has met, in float64.
            variances: of these means.
            seen: samples so far.
            expected: samples in all; None if not known.
        """
        if self._keep is None:
            return
        price, error = self._prices(costs, variances), variances * self._weights.square()
        for group in self._running_groups():
            if len(group) <= self._keep:
                continue
            rounds = math.ceil(math.log2(len(group) / self._keep))
            halves = expected is not None and seen >= expected / 2**rounds
            order = sorted(group, key=lambda i: (float(price[i]), float(self._weights[i])))
            last = order[self._keep - 1]
            for rank, i in enumerate(order[self._keep :], start=self._keep):
                distance = float(price[i] - price[last])
                clearly = distance > _CLEARLY * math.sqrt(error[i] + error[last])
                if clearly or (halves and rank >= len(order) / 2):
                    self.running.remove(i)
                    self._behind[i] = last, distance

    @property
    def over(self) -> bool:
        """Whether others have dropped out and only the wanted ones remain."""
        if self._keep is None or not self._behind:
            return False
        return all(len(group) <= self._keep for group in self._running_groups())

    def costs_of_all(self, costs: Tensor, variances: Tensor) -> Tensor:
        """Return the costs, of those that dropped out by how far they were behind."""
        price, found = self._prices(costs, variances), costs.clone()
        for i, (last, distance) in reversed(self._behind.items()):  # the last one first
            price[i] = price[last] + distance
            found[i] = price[i] / self._weights[i]
        return found

    def _prices(self, costs: Tensor, variances: Tensor) -> Tensor:
        # A cost below its own standard error cannot be distinguished from it, and must not look
        # better for saving less.
        if bool((self._weights == 1.0).all()):
            return costs.clone()
        return torch.maximum(costs, variances.sqrt()) * self._weights

    def _running_groups(self) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for i in self.running:
            groups.setdefault(self._groups[i], []).append(i)
        return list(groups.values())
