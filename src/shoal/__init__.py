"""shoal: make trained neural networks shallower and really faster, with proof."""

from __future__ import annotations

from shoal import models
from shoal.errors import ShoalError
from shoal.importance import score
from shoal.measure import benchmark
from shoal.methods import compress
from shoal.network import Network, capture
from shoal.store import load, save
from shoal.surgery import fit_lines, linearize_

__all__ = [
    "Network",
    "ShoalError",
    "__version__",
    "benchmark",
    "capture",
    "compress",
    "fit_lines",
    "linearize_",
    "load",
    "models",
    "save",
    "score",
]

__version__ = "0.1.0"
