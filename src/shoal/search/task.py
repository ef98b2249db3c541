"""What stays the same for all steps of a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.network import Network
from shoal.options import Recipe
from shoal.search.data import Data
from shoal.search.gauge import Gauge
from shoal.search.listener import Listener
from shoal.search.meter import Meter
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.rewind import Rewind

if TYPE_CHECKING:
    from shoal.search.run import Run

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """What stays the same for all steps of a search.

    Attributes:
        base: the captured original, with an empty plan.
        data: for training, validation and test.
        options: of the search.
        machine: where it works and measures.
        recipe: how it trains.
        gauge: what measures.
        listener: who watches.
        rewind: the weights to go back to after each removal.
        fit: the user's own training in place of the built-in one.
        run: the folder that remembers; None keeps nothing.
        meter: measures what training takes; None measures nothing.
    """

    base: Network
    data: Data
    options: SearchOptions
    machine: MachineOptions
    recipe: Recipe
    gauge: Gauge
    listener: Listener
    rewind: Rewind
    fit: Callable[[Network], object] | None = None
    run: Run | None = None
    meter: Meter | None = None
