"""Importance for each millisecond that a removal saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from shoal.errors import ConfigError
from shoal.importance.scores import Scores

__all__ = ["per_latency"]


def per_latency(scores: Scores, saved_ms: Mapping[str, float]) -> Scores:
    """Divide each score by the measured latency that the removal saves (Practise, CVPR 2023).

    A negative score, a removal that does good, is multiplied instead: the more it saves, the
    earlier it goes. What saves nothing goes last: its score is infinite.

    Args:
        scores: of any criterion; lowest goes first.
        saved_ms: milliseconds that each removal saves, as `shoal.surgery.block_costs.block_costs`
            measures them.

    Raises:
        ConfigError: a scored name has no measured latency.
    """
    missing = [name for name in scores if name not in saved_ms]
    if missing:
        raise ConfigError(
            f"the latency that '{missing[0]}' saves was not measured: measure all that is scored"
        )
    values = {name: _weighted(score, saved_ms[name]) for name, score in scores.items()}
    errors = {
        name: error * abs(values[name] / scores[name])
        for name, error in scores.standard_errors.items()
        if scores[name] != 0 and math.isfinite(values[name])
    }
    details = {n: {**scores.details.get(n, {}), "saved_ms": saved_ms[n]} for n in scores}
    return replace(
        scores, by_name=values, standard_errors=errors, settled=None, details=details,
        unit=f"{scores.unit} per ms".strip(),
    )  # fmt: skip


def _weighted(score: float, saved: float) -> float:
    if saved <= 0:
        return math.inf
    return score / saved if score >= 0 else score * saved
