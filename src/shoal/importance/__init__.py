"""What can go: criteria that score sites, blocks and stretches, one file each, in one registry."""

from __future__ import annotations

from shoal.importance.criteria import (
    criterion_for,
    make_criterion,
    score,
    score_by,
    score_several,
)
from shoal.importance.criterion import Criterion, OnePass, criteria, register_criterion
from shoal.importance.scores import Scores, per_latency
from shoal.importance.stages import Stage, stages
from shoal.registry import import_modules

__all__ = [
    "Criterion",
    "OnePass",
    "Scores",
    "Stage",
    "criteria",
    "criterion_for",
    "make_criterion",
    "per_latency",
    "register_criterion",
    "score",
    "score_by",
    "score_several",
    "stages",
]

import_modules(__name__, __path__)  # a criterion registers itself: a new one is one new file
