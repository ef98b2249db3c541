"""The published systems and ours: short programs over importance, surgery and training."""

from __future__ import annotations

from shoal.methods.easier import Easier
from shoal.methods.layer_pruning import LayerPruning
from shoal.methods.shoal import Shoal
from shoal.search.compress import compress
from shoal.search.engine import search
from shoal.search.legacy import (
    Method,
    Proposal,
    Search,
    Situation,
)
from shoal.search.listener import Listener
from shoal.search.method import methods
from shoal.search.records import Metrics, Step
from shoal.search.result import Result

__all__ = [
    "Easier",
    "LayerPruning",
    "Listener",
    "Method",
    "Metrics",
    "Proposal",
    "Result",
    "Search",
    "Shoal",
    "Situation",
    "Step",
    "compress",
    "methods",
    "search",
]
