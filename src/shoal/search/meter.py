"""What a search asks of something that measures the cost of training, such as its energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from shoal.network import Network
from shoal.search.records import Step

__all__ = ["Meter", "Spent"]


@dataclass
class Spent:
    """What a piece of training took.

    Attributes:
        energy: JSON values, known when the training has ended, in the main process alone.
    """

    energy: Mapping[str, Any] | None = None


class Meter(Protocol):
    """Measures what a search spends and what its result saves; `shoal.extras` has one of energy."""

    def training(self) -> AbstractContextManager[Spent]:
        """Return a context that measures the training inside it."""
        ...

    def summary(
        self, dense: Network, best: Network, steps: Sequence[Step], lab: Any
    ) -> Mapping[str, Any]:
        """Return JSON values for the end of the search: `Result.energy`.

        Args:
            dense: the dense network; it must be left as it is.
            best: the result; likewise.
            steps: all steps of the search, each with what its training took.
            lab: the search's `Lab`, with its data and options.
        """
        ...
