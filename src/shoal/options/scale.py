"""Options at a share of their epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from shoal.options.base import Option, Options, options_of

AnyOptions = TypeVar("AnyOptions", bound=Options)


def at_budget(options: AnyOptions, budget: float) -> AnyOptions:
    """Return options with all numbers of epochs times `budget`: whole ones rounded, at least 1.

    Milestones are shares of a training, so they go along. What is 0 or not given stays.

    Example:
        >>> from shoal.options import Recipe
        >>> at_budget(Recipe(warmup_epochs=5, early_stop=20), 0.1)
        ... # doctest: +ELLIPSIS
        Recipe(... warmup_epochs=0.5, ... early_stop=2)
    """
    scaled = {
        known.name: _scaled(getattr(options, known.name), budget)
        for known in options_of(type(options))
        if _counts_epochs(known) and getattr(options, known.name)
    }
    return replace(options, **scaled)


def _scaled(epochs: float, budget: float) -> float:
    return max(1, int(epochs * budget + 0.5)) if isinstance(epochs, int) else epochs * budget


def _counts_epochs(known: Option) -> bool:
    named = known.name == "epochs" or known.name.endswith("_epochs")
    return known.kind in (int, float) and (named or known.unit == "epochs")
