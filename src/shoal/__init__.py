"""shoal: make trained neural networks shallower and really faster, with proof."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal import data as data
    from shoal import models as models
    from shoal import published as published
    from shoal.data.dataset import register_data as register_data
    from shoal.errors import ShoalError as ShoalError
    from shoal.importance import register_criterion as register_criterion
    from shoal.importance import score as score
    from shoal.importance.criterion import Criterion as Criterion
    from shoal.importance.criterion import Scores as Scores
    from shoal.measure import benchmark as benchmark
    from shoal.merge.loading import load as load
    from shoal.merge.merge import merge_ as merge_
    from shoal.models.lookup import register_model as register_model
    from shoal.network import Network as Network
    from shoal.network import capture as capture
    from shoal.network.ops import register_op as register_op
    from shoal.network.saving import save as save
    from shoal.options import Options as Options
    from shoal.options import Recipe as Recipe
    from shoal.options import option as option
    from shoal.runtimes import export as export
    from shoal.runtimes.runtime import register_runtime as register_runtime
    from shoal.search.compress import compress as compress
    from shoal.search.method import Method as Method
    from shoal.search.method import Progress as Progress
    from shoal.search.method import register_method as register_method
    from shoal.search.records import Result as Result
    from shoal.search.twin import twin as twin
    from shoal.share.pushing import push as push
    from shoal.surgery import collapse_ as collapse_
    from shoal.surgery import drop_ as drop_
    from shoal.surgery import fit_lines as fit_lines
    from shoal.surgery import linearize_ as linearize_
    from shoal.surgery import norm_lines as norm_lines
    from shoal.surgery import swap_rectifiers_ as swap_rectifiers_
    from shoal.surgery import zero_out_ as zero_out_
    from shoal.surgery.drop import block_costs as block_costs
    from shoal.sweep.run import sweep as sweep
    from shoal.tasks import Task as Task
    from shoal.tasks import register_task as register_task

__version__ = "0.3.0.dev0"

# Where the public names lie; imported when first used, so that `shoal --help` does not wait for
# PyTorch. A module stands for itself.
_NAMES = {
    "shoal.data.dataset": "register_data",
    "shoal.errors": "ShoalError",
    "shoal.importance": "register_criterion score",
    "shoal.importance.criterion": "Criterion Scores",
    "shoal.measure": "benchmark",
    "shoal.merge.loading": "load",
    "shoal.merge.merge": "merge_",
    "shoal.models.lookup": "register_model",
    "shoal.network": "Network capture",
    "shoal.network.ops": "register_op",
    "shoal.network.saving": "save",
    "shoal.options": "Options Recipe option",
    "shoal.runtimes": "export",
    "shoal.runtimes.runtime": "register_runtime",
    "shoal.search.compress": "compress",
    "shoal.search.method": "Method Progress register_method",
    "shoal.search.records": "Result",
    "shoal.search.twin": "twin",
    "shoal.share.pushing": "push",
    "shoal.surgery": "collapse_ drop_ fit_lines linearize_ norm_lines swap_rectifiers_ zero_out_",
    "shoal.surgery.drop": "block_costs",
    "shoal.tasks": "Task register_task",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
_HOMES |= {"data": "", "models": "", "published": "", "sweep": ""}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute '{name}'")
    if name == "compress":  # whoever compresses needs the methods
        importlib.import_module("shoal.methods")
    home = _HOMES[name]
    found = importlib.import_module(home or f"shoal.{name}")
    value = globals()[name] = getattr(found, name) if home else found
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
