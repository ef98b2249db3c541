"""Criteria that fit what could stand for a part of the network, and ask how good that is.

`fit_residual` looks at a stretch alone: 0 where one layer does the same, 1 where it does no better
than a constant. `collapse_loss` asks what that layer does to the network's answers, and `line_loss`
what linearizing a site, as `linearize_` does it, costs before fine-tuning: the entropy says how
close to linear a rectifier acts, but not how much it would be missed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from shoal.errors import ConfigError
from shoal.importance.candidates import Candidate, candidates
from shoal.importance.criterion import Criterion, Scores, register_criterion
from shoal.importance.entropy import Entropy
from shoal.importance.replaced import TrialOptions, replacement_scores
from shoal.modes import device_of
from shoal.network import Network
from shoal.network.stretches import Stretch, with_kernel
from shoal.options import at_least, one_of, option
from shoal.passes.batches import Data, Observer, observe
from shoal.surgery import FittedLine, LineMoments
from shoal.surgery.collapse import fit_stretches
from shoal.surgery.fit_conv import FittedLayer
from shoal.tasks import Task


def applied(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer in the type of x, as the network itself would hold it."""
    return layer.to(x.dtype)(x)


@register_criterion("line_loss")
class LineLoss(Criterion):
    """Scores a site by the rise of the loss where its line takes the rectifier's place.

    A first pass fits the lines. A second one runs the network on each batch and, for each site,
    again from the site on. Needs labels.
    """

    place = "site"
    asks = frozenset({"how", "keep"})

    @dataclass(frozen=True, kw_only=True)
    class Options(TrialOptions):
        """Which lines are fitted, and how what they cost is judged."""

        how: str = option(
            "line",
            "What takes the rectifier's place: its line, or identity, the line of slope 1 "
            "through 0.",
            check=one_of("line", "identity"),
        )
        screen: int | None = option(
            None,
            "Judge and score only this many sites, those with the lowest entropy. By default all.",
            check=at_least(1),
        )
        line_samples: int | None = option(
            512, "Fit the lines on this many samples; null uses all.", check=at_least(1)
        )
        positions: int | None = option(
            8192,
            "Fit the lines on about this many positions of each batch; null uses all.",
            check=at_least(1),
        )

    options: Options

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        own, judged = self.options, candidates(network, "site")
        moments, entropy = LineMoments(positions=own.positions), Entropy()
        needed = ((moments, own.how == "line"), (entropy, own.screen is not None))
        observers: list[Observer] = [observer for observer, is_needed in needed if is_needed]
        if observers:
            few = [n for n in (own.line_samples, data.samples) if n is not None]
            observe(network, data.loader, observers, samples=min(few, default=None))
        if own.screen is not None:
            screened = entropy.scores().lowest(own.screen)
            judged = [candidate for candidate in judged if candidate.name in screened]
        if own.how == "line":
            judged = _with_lines(network, judged, moments.lines())
        return replacement_scores(self.name, network, judged, data, own, self.task)


def line_scores(
    network: Network, lines: Mapping[str, FittedLine], data: Data, task: Task
) -> Scores:
    """Score sites as `line_loss` does, with lines that were made before; others have no score."""
    chosen = [c for c in candidates(network, "site") if c.name in lines]
    judged, how = _with_lines(network, chosen, lines), TrialOptions(keep=None, precision="fp32")
    return replace(
        replacement_scores("line_loss", network, judged, data, how, task), unit=task.loss_unit
    )


def _with_lines(
    network: Network, chosen: Sequence[Candidate], lines: Mapping[str, FittedLine]
) -> list[Candidate]:
    """Return the candidates with a line in the place of each rectifier."""
    like = torch.empty(0, device=device_of(network))
    dims = {site.name: site.channel_dim for site in network.sites}
    return [
        replace(c, compute=partial(applied, lines[c.name].layer(like, dims[c.name])))
        for c in chosen
    ]


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
    positions: int | None = option(
        None,
        "Fit each layer on about this many positions of the feature maps. By default on 5 for each "
        "weight of an output channel, at least 16,384: fewer than collapse_ takes, and enough to "
        "compare.",
        check=at_least(1),
    )
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
        fitted = _fitted_layers(network, _stretches(network, self.options), data, self.options)
        details = {
            name: {
                "rows": layer.rows,
                "columns": layer.shape.columns,
                "kernel_size": list(layer.shape.kernel_size),
            }
            for name, layer in fitted.items()
        }
        residuals = {name: layer.residual for name, layer in fitted.items()}
        samples = max(layer.samples for layer in fitted.values())
        return Scores(self.name, residuals, samples, details=details)


@register_criterion("collapse_loss")
class CollapseLoss(Criterion):
    """Scores blocks and stretches by the rise of the loss where a fitted layer replaces them.

    A first pass fits the layers, as `fit_residual` does. A second one runs the network on each
    batch and, for each stretch, again from its end on. Needs labels.
    """

    asks = frozenset({"place", "keep"})

    @dataclass(frozen=True, kw_only=True)
    class Options(FitOptions, TrialOptions):
        """Which layers are fitted, and how what they cost is judged."""

        screen: int | None = option(
            None,
            "Judge and score only this many stretches, those with the lowest residual. By default "
            "all.",
            check=at_least(1),
        )

    options: Options

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        stretches = _stretches(network, self.options)
        fitted = _fitted_layers(network, stretches, replace(data, progress=None), self.options)
        screened = sorted(fitted, key=lambda name: fitted[name].residual)[: self.options.screen]
        like = torch.empty(0, device=device_of(network))
        judged = [
            Candidate(s.name, s.end, s.start, partial(applied, fitted[s.name].layer(like)))
            for s in stretches
            if s.name in screened
        ]
        scores = replacement_scores(self.name, network, judged, data, self.options, self.task)
        details = {n: {**scores.details[n], "residual": fitted[n].residual} for n in scores}
        return replace(scores, details=details)


def _stretches(network: Network, options: FitOptions) -> list[Stretch]:
    """Return the stretches to score, in the order of the forward pass."""
    for name in options.names or ():
        network.stretch(name)
    chosen = [s for s in network.stretches if options.names is None or s.name in options.names]
    if options.place == "block":
        removable = {block.name for block in network.blocks if block.removable}
        chosen = [stretch for stretch in chosen if stretch.name in removable]
    if options.kernel_size is not None:
        sized = (with_kernel(stretch, options.kernel_size) for stretch in chosen)
        chosen = [stretch for stretch in sized if isinstance(stretch, Stretch)]
    if not chosen:
        raise ConfigError("the network has no block or stretch that one layer can be fitted to")
    return chosen


def _fitted_layers(
    network: Network, stretches: list[Stretch], data: Data, options: FitOptions
) -> dict[str, FittedLayer]:
    """Return the fitted layers by name; a stretch that the data are too few for has none."""
    fitted = fit_stretches(
        network, stretches, data.loader,
        samples=data.samples, ridge=options.ridge, progress=data.progress, leave_out=True,
        rows=lambda stretch: options.positions or stretch.shape.rows_to_rank,
    )  # fmt: skip
    if not fitted:
        raise ConfigError(
            "there are too few samples to fit a layer to any block or stretch: give more, or a "
            "smaller kernel_size"
        )
    return fitted
