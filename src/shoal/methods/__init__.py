"""The published systems and ours: short programs over importance, surgery and training."""

from __future__ import annotations

from shoal.methods.compress import compress
from shoal.methods.costs import Costs
from shoal.methods.easier import Easier
from shoal.methods.layer_pruning import LayerPruning
from shoal.methods.listener import Listener
from shoal.methods.options import Search
from shoal.methods.registry import (
    Method,
    Proposal,
    Situation,
    defaults_of,
    make_method,
    methods,
    recipe_of,
)
from shoal.methods.result import Result
from shoal.methods.search import search
from shoal.methods.shoal import Shoal
from shoal.records import Metrics, Step

__all__ = [
    "Costs",
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
    "defaults_of",
    "make_method",
    "methods",
    "recipe_of",
    "search",
]
