"""Fit residual: how badly one layer, fitted by least squares, gives what a block or stretch gives.

It looks at the stretch alone: 0 where one layer does the same, 1 where it does no better than a
constant. `collapse_loss` asks what it does to the network's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.importance.criteria import criteria
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.surgery.fit_conv import FittedLayer
from shoal.surgery.fit_stretches import check_ridge, fit_stretches
from shoal.surgery.stretches import Stretch, find_stretches, with_kernel

__all__ = ["FitResidual", "candidates_for_collapse", "residual_scores"]


@criteria.register("fit_residual")
class FitResidual:
    """Scores blocks and stretches by the relative residual of the layer fitted to them.

    The residual is the expected squared error over the variance of the target, which for a
    residual block is the sum of branch and skip, before the rectifier after it. One pass over the
    data serves all stretches whose matrices fit into memory together. Needs no labels.

    Args:
        kernel_size: of the fitted convolutions; None takes that of each stretch's largest layer.
            Stretches that cannot have it are left out.
        ridge: as in `collapse_`.
        names: score these stretches only.

    Raises:
        ConfigError: an option makes no sense.
    """

    name = "fit_residual"
    unit = "stretch"

    def __init__(
        self,
        *,
        kernel_size: int | None = None,
        ridge: float | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        check_ridge(ridge)
        self.kernel_size = kernel_size
        self.ridge = ridge
        self.names = None if names is None else list(names)

    def score(
        self,
        network: Network,
        loader: Iterable[Any],
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score what `collapse_` takes; arguments as for `shoal.score`."""
        chosen = candidates_for_collapse(network, self.kernel_size, self.names)
        fitted = fit_stretches(
            network, chosen, loader, samples=samples, ridge=self.ridge, progress=progress
        )
        return residual_scores(fitted)


def candidates_for_collapse(
    network: Network, kernel_size: int | None, names: Sequence[str] | None
) -> list[Stretch]:
    """Return the stretches to score, in the order of the forward pass.

    Raises:
        NameNotFoundError: one of `names` is no stretch.
        ConfigError: there is nothing to collapse.
    """
    found = {stretch.name: stretch for stretch in find_stretches(network)}
    for name in names or ():
        if name not in found:
            raise unknown_name("block or stretch that can be collapsed", name, found)
    chosen = [s for name, s in found.items() if names is None or name in names]
    if kernel_size is not None:
        chosen = [s for s in (_with_kernel(s, kernel_size) for s in chosen) if s is not None]
    if not chosen:
        raise ConfigError("the network has no block or stretch that one layer can be fitted to")
    return chosen


def _with_kernel(stretch: Stretch, kernel_size: int) -> Stretch | None:
    try:
        return with_kernel(stretch, kernel_size)
    except ConfigError:
        return None


def residual_scores(fitted: dict[str, FittedLayer]) -> Scores:
    """Return the residuals of fits as scores."""
    values = {name: layer.residual for name, layer in fitted.items()}
    details = {
        name: {
            "rows": layer.rows,
            "columns": layer.shape.columns,
            "kernel_size": list(layer.shape.kernel_size),
        }
        for name, layer in fitted.items()
    }
    samples = max((layer.samples for layer in fitted.values()), default=0)
    return Scores(FitResidual.name, values, samples, details=details)
