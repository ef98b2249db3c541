"""shoal: make trained neural networks shallower and really faster, with proof."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal import models
    from shoal.errors import ShoalError
    from shoal.importance import register_criterion, score
    from shoal.measure import benchmark
    from shoal.merge.loading import load
    from shoal.merge.merge import merge_
    from shoal.network import Network, capture
    from shoal.network.ops import register_op
    from shoal.network.saving import save
    from shoal.runtimes import export
    from shoal.search.compress import compress
    from shoal.surgery import collapse_, drop_, fit_lines, linearize_, zero_out_
    from shoal.surgery.block_costs import block_costs

__all__ = [
    "Network",
    "ShoalError",
    "__version__",
    "benchmark",
    "block_costs",
    "capture",
    "collapse_",
    "compress",
    "drop_",
    "export",
    "fit_lines",
    "linearize_",
    "load",
    "merge_",
    "models",
    "register_criterion",
    "register_op",
    "save",
    "score",
    "zero_out_",
]

__version__ = "0.1.0"

# Imported when first used, so that `shoal --help` does not wait for PyTorch.
_HOMES = {
    "Network": "shoal.network",
    "ShoalError": "shoal.errors",
    "benchmark": "shoal.measure",
    "block_costs": "shoal.surgery.block_costs",
    "capture": "shoal.network",
    "collapse_": "shoal.surgery",
    "compress": "shoal.methods",
    "drop_": "shoal.surgery",
    "export": "shoal.runtimes",
    "fit_lines": "shoal.surgery",
    "linearize_": "shoal.surgery",
    "load": "shoal.merge.loading",
    "merge_": "shoal.merge",
    "register_criterion": "shoal.importance",
    "register_op": "shoal.network.ops",
    "save": "shoal.network.saving",
    "score": "shoal.importance",
    "zero_out_": "shoal.surgery",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return importlib.import_module("shoal.models")
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
