"""What can go: criteria that score sites and blocks, one file each, in one registry."""

from __future__ import annotations

from shoal.importance.branch_entropy import BlockEntropy
from shoal.importance.cka import CKA
from shoal.importance.collapse_loss import CollapseLoss
from shoal.importance.criteria import Criterion, criteria, score
from shoal.importance.divergence import KL
from shoal.importance.entropy import Entropy
from shoal.importance.fit_residual import FitResidual
from shoal.importance.free import Last, Random
from shoal.importance.gradients import GraSP, Snip, Taylor
from shoal.importance.influence import BlockInfluence
from shoal.importance.lesion import Lesion
from shoal.importance.line_loss import LineLoss
from shoal.importance.magnitude import L1, L2, BatchNormScale
from shoal.importance.per_latency import per_latency
from shoal.importance.scores import Scores
from shoal.importance.several import Consensus, score_several
from shoal.importance.stages import Stage, stages

__all__ = [
    "CKA",
    "KL",
    "L1",
    "L2",
    "BatchNormScale",
    "BlockEntropy",
    "BlockInfluence",
    "CollapseLoss",
    "Consensus",
    "Criterion",
    "Entropy",
    "FitResidual",
    "GraSP",
    "Last",
    "Lesion",
    "LineLoss",
    "Random",
    "Scores",
    "Snip",
    "Stage",
    "Taylor",
    "criteria",
    "per_latency",
    "score",
    "score_several",
    "stages",
]
