"""Collapse loss: how much the loss rises where one fitted layer takes a stretch's place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoal.errors import ConfigError
from shoal.importance.criteria import criteria
from shoal.importance.fit_residual import StretchFits, residual_scores
from shoal.importance.replaced import Replacement, check_metric, replacement_scores
from shoal.importance.scores import Scores
from shoal.modes import device_of
from shoal.network import Network

__all__ = ["CollapseLoss", "apply_layer"]


@criteria.register("collapse_loss")
class CollapseLoss:
    """Scores blocks and stretches by the rise of the loss where a fitted layer replaces them.

    A first pass fits the layers, as `fit_residual` does. A second one runs the network on each
    batch and, for each stretch, again from its end on. Needs labels.

    Args:
        metric: "loss" scores the rise of the mean cross-entropy in nats, "accuracy" the points of
            accuracy lost.
        screen: judge only the so many stretches with the lowest residual; only they get scores.
            None judges all.
        keep: so many of the best are wanted; the others meet fewer samples, as their details tell,
            as it becomes plain that they are not among them. None judges all on all samples.
        kernel_size: as in `collapse_`; stretches that cannot have it are left out.
        ridge: as in `collapse_`.
        names: score these stretches only.
        unit: as in `fit_residual`.
        precision: of the second pass: "auto" takes bf16 where the hardware computes in it; or
            "fp32", "bf16", "fp16".

    Raises:
        ConfigError: an option makes no sense.
    """

    name = "collapse_loss"

    def __init__(
        self,
        *,
        metric: str = "loss",
        screen: int | None = None,
        keep: int | None = 1,
        kernel_size: int | None = None,
        ridge: float | None = None,
        names: Sequence[str] | None = None,
        unit: str = "stretch",
        precision: str = "auto",
    ) -> None:
        check_metric(metric)
        if screen is not None and screen < 1:
            raise ConfigError(f"screen is {screen}: give at least 1, or leave it out for all")
        self.metric = metric
        self.screen = screen
        self.keep = keep
        self.unit = unit
        self.fits = StretchFits(unit, kernel_size, ridge, names)
        self.precision = precision

    def score(
        self,
        network: Network,
        loader: Iterable[Any],
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score what `collapse_` takes; arguments as for `shoal.score`."""
        fitted = self.fits.of(network, loader, samples)
        residuals = residual_scores(fitted)
        judged = fitted if self.screen is None else residuals.lowest(self.screen)
        chosen = [s for s in self.fits.stretches(network) if s.name in judged]
        like = torch.empty(0, device=device_of(network))
        scores = replacement_scores(
            self.name,
            network,
            [
                Replacement(
                    s.name, s.end, s.start, partial(apply_layer, fitted[s.name].layer(like))
                )
                for s in chosen
            ],
            loader,
            metric=self.metric,
            precision=self.precision,
            keep=self.keep,
            samples=samples,
            progress=progress,
        )
        details = {n: {**scores.details[n], "residual": residuals[n]} for n in scores}
        return replace(scores, details=details)


def apply_layer(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """Return what the layer gives, in the type of x."""
    weight, bias = layer.weight.to(x.dtype), layer.bias
    assert bias is not None
    bias = bias.to(x.dtype)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)
