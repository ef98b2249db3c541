"""What can go: criteria that score sites, blocks and stretches, in one registry."""

from __future__ import annotations

from shoal.importance.candidates import Stage, stages
from shoal.importance.criteria import criterion_for, make_criterion, score, score_by, score_several
from shoal.importance.criterion import (
    Criterion,
    OnePass,
    Scores,
    criteria,
    per_latency,
    register_criterion,
)
from shoal.registry import import_modules

__all__ = [
    "Criterion", "OnePass", "Scores", "Stage", "criteria", "criterion_for", "make_criterion",
    "per_latency", "register_criterion", "score", "score_by", "score_several", "stages",
]  # fmt: skip

import_modules(__name__, __path__)  # a criterion registers itself: a new one is one new file
