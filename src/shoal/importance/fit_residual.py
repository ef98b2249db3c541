"""Fit residual: how badly one layer, fitted by least squares, gives what a block or stretch gives.

It looks at the stretch alone: 0 where one layer does the same, 1 where it does no better than a
constant. `collapse_loss` asks what it does to the network's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.importance.criteria import criteria
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.network.stretches import Stretch, with_kernel
from shoal.surgery.fit_conv import FittedLayer
from shoal.surgery.fit_stretches import check_ridge, fit_stretches

__all__ = ["FitResidual", "StretchFits", "residual_scores"]


@criteria.register("fit_residual")
class FitResidual:
    """Scores blocks and stretches by the relative residual of the layer fitted to them.

    The residual is the expected squared error over the variance of the target, which for a
    residual block is the sum of branch and skip, before the rectifier after it (a criterion of this
    project; the fit is that of `shoal.collapse_`). One pass over the
    data serves all stretches whose matrices fit into memory together. Needs no labels.

    Args:
        kernel_size: of the fitted convolutions; None takes that of each stretch's largest layer.
            Stretches that cannot have it are left out.
        ridge: as in `collapse_`.
        names: score these stretches only.
        unit: "stretch" scores all, "block" the residual blocks that can be dropped, to rank them.

    Raises:
        ConfigError: an option makes no sense.
    """

    name = "fit_residual"

    def __init__(
        self,
        *,
        kernel_size: int | None = None,
        ridge: float | None = None,
        names: Sequence[str] | None = None,
        unit: str = "stretch",
    ) -> None:
        self.unit = unit
        self.fits = StretchFits(unit, kernel_size, ridge, names)

    def score(
        self,
        network: Network,
        loader: Iterable[Any],
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score what `collapse_` takes; arguments as for `shoal.score`."""
        return residual_scores(self.fits.of(network, loader, samples, progress))


@dataclass(frozen=True)
class StretchFits:
    """Which stretches layers are fitted to, and how; see `FitResidual` for the options."""

    unit: str = "stretch"
    kernel_size: int | None = None
    ridge: float | None = None
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an option that makes no sense."""
        check_ridge(self.ridge)
        if self.unit not in ("stretch", "block"):
            raise ConfigError(f"unit is '{self.unit}': choose 'stretch' or 'block'")

    def of(
        self,
        network: Network,
        loader: Iterable[Any],
        samples: int | None,
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[str, FittedLayer]:
        """Return the fitted layers by name; a stretch that the data are too few for has none.

        Raises:
            NameNotFoundError: one of `names` is no stretch.
            ConfigError: there is nothing to fit, or there are too few data for all.
        """
        fitted = fit_stretches(
            network, self.stretches(network), loader,
            samples=samples, ridge=self.ridge, progress=progress, leave_out=True,
        )  # fmt: skip
        if not fitted:
            raise ConfigError(
                "there are too few samples to fit a layer to any block or stretch: give more, or a "
                "smaller kernel_size"
            )
        return fitted

    def stretches(self, network: Network) -> list[Stretch]:
        """Return the stretches, in the order of the forward pass; raises as `of` does."""
        found = {stretch.name: stretch for stretch in network.stretches}
        for name in self.names or ():
            if name not in found:
                raise unknown_name("block or stretch that can be collapsed", name, found)
        chosen = [s for name, s in found.items() if self.names is None or name in self.names]
        if self.unit == "block":
            removable = {block.name for block in network.blocks if block.removable}
            chosen = [stretch for stretch in chosen if stretch.name in removable]
        if self.kernel_size is not None:
            sized = (_with_kernel(stretch, self.kernel_size) for stretch in chosen)
            chosen = [stretch for stretch in sized if stretch is not None]
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
