"""Fit residual: how far one layer, fitted by least squares, is from a block or stretch.

It looks at the stretch alone: 0 where one layer does the same, 1 where it does no better than a
constant. `collapse_loss` asks what that layer does to the network's answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override

from shoal.errors import ConfigError, unknown_name
from shoal.importance.criterion import Criterion, register_criterion
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.network.stretches import Stretch, with_kernel
from shoal.options import at_least, one_of, option
from shoal.passes.batches import Data
from shoal.surgery.fit_conv import FittedLayer
from shoal.surgery.fit_stretches import fit_stretches

__all__ = ["FitOptions", "FitResidual", "chosen_stretches", "fitted_layers", "residual_scores"]


@dataclass(frozen=True, kw_only=True)
class FitOptions(Criterion.Options):
    """Which stretches layers are fitted to, and how."""

    kernel_size: int | None = option(
        None,
        "Kernel size of the fitted convolutions; stretches that cannot have it are left out. By "
        "default that of each stretch's largest layer.",
        check=at_least(1),
    )
    ridge: float | None = option(None, "As in collapse_.", check=at_least(0))
    names: tuple[str, ...] | None = option(None, "Score these stretches only.")
    place: str = option(
        "stretch",
        "stretch scores all, block the residual blocks that can be dropped, to rank them.",
        check=one_of("stretch", "block"),
    )


@register_criterion("fit_residual")
class FitResidual(Criterion):
    """Scores blocks and stretches by the relative residual of the layer fitted to them.

    The residual is the expected squared error over the variance of the target, which for a
    residual block is the sum of branch and skip, before the rectifier after it (a criterion of this
    project; the fit is that of `shoal.collapse_`). One pass over the data serves all stretches
    whose matrices fit into memory together. Needs no labels.
    """

    asks = frozenset({"place"})
    Options = FitOptions
    options: FitOptions

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        return residual_scores(fitted_layers(network, data, self.options))


def fitted_layers(network: Network, data: Data, options: FitOptions) -> dict[str, FittedLayer]:
    """Return the fitted layers by name; a stretch that the data are too few for has none.

    Raises:
        NameNotFoundError: one of the `names` is no stretch.
        ConfigError: there is nothing to fit, or there are too few data for all.
    """
    fitted = fit_stretches(
        network, chosen_stretches(network, options), data.loader,
        samples=data.samples, ridge=options.ridge, progress=data.progress, leave_out=True,
    )  # fmt: skip
    if not fitted:
        raise ConfigError(
            "there are too few samples to fit a layer to any block or stretch: give more, or a "
            "smaller kernel_size"
        )
    return fitted


def chosen_stretches(network: Network, options: FitOptions) -> list[Stretch]:
    """Return the stretches, in the order of the forward pass; raises as `fitted_layers` does."""
    found = {stretch.name: stretch for stretch in network.stretches}
    for name in options.names or ():
        if name not in found:
            raise unknown_name("block or stretch that can be collapsed", name, found)
    chosen = [s for name, s in found.items() if options.names is None or name in options.names]
    if options.place == "block":
        removable = {block.name for block in network.blocks if block.removable}
        chosen = [stretch for stretch in chosen if stretch.name in removable]
    if options.kernel_size is not None:
        sized = (with_kernel(stretch, options.kernel_size) for stretch in chosen)
        chosen = [stretch for stretch in sized if isinstance(stretch, Stretch)]
    if not chosen:
        raise ConfigError("the network has no block or stretch that one layer can be fitted to")
    return chosen


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
