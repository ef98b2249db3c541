"""Collapse loss: how much the loss rises where one fitted layer takes a stretch's place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from shoal.importance.criterion import Criterion, register_criterion
from shoal.importance.fit_residual import (
    FitOptions,
    chosen_stretches,
    fitted_layers,
    residual_scores,
)
from shoal.importance.replaced import Replacement, TrialOptions, replacement_scores
from shoal.importance.scores import Scores
from shoal.modes import device_of
from shoal.network import Network
from shoal.options import at_least, option
from shoal.passes.batches import Data

__all__ = ["CollapseLoss", "apply_layer"]


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
        fitted = fitted_layers(network, replace(data, progress=None), self.options)
        residuals = residual_scores(fitted)
        screen = self.options.screen
        judged = fitted if screen is None else residuals.lowest(screen)
        like = torch.empty(0, device=device_of(network))
        replacements = [
            Replacement(s.name, s.end, s.start, partial(apply_layer, fitted[s.name].layer(like)))
            for s in chosen_stretches(network, self.options)
            if s.name in judged
        ]
        scores = replacement_scores(self.name, network, replacements, data, self.options)
        details = {n: {**scores.details[n], "residual": residuals[n]} for n in scores}
        return replace(scores, details=details)


def apply_layer(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Apply the layer in the type of x."""
    weight, bias = layer.weight.to(x.dtype), layer.bias
    assert bias is not None
    bias = bias.to(x.dtype)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
