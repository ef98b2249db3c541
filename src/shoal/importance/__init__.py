"""What can go: criteria that score sites and blocks, one file each, in one registry."""

from __future__ import annotations

from shoal.importance.criteria import Criterion, criteria, score
from shoal.importance.entropy import Entropy
from shoal.importance.observe import Observer, observe
from shoal.importance.scores import Scores

__all__ = ["Criterion", "Entropy", "Observer", "Scores", "criteria", "observe", "score"]
