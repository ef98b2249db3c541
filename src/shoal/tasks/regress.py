"""Regression: real values for each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from shoal.errors import DataError
from shoal.options import RegressOptions
from shoal.tasks.task import Task, at_least_fp32, needs_target, per_sample, register_task

_LEAST = -1e6  # of R², which has no lower bound; for outputs that are NaN or infinite
_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "squared": F.mse_loss,
    "absolute": F.l1_loss,
    "huber": F.huber_loss,
}


@register_task("regress")
class Regress(Task):
    """Real values for each sample: a mean error as the loss, R² in percent.

    Outputs and targets have one shape, `[batch]`, `[batch, values]` or `[batch, values, …]`; one
    value may stand with or without its dimension. The quality is R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)² of
    each value, over samples and positions, and the mean over values whose targets vary. A point is
    a hundredth of the targets' variance, so the same `max_drop` suits targets in any unit; R² is 0
    for a network that always gives the mean, and negative for a worse one.
    """

    quality_name = "R²"
    loss_unit = ""
    expected = "[batch, values]"

    Options = RegressOptions

    @override
    def fits(self, output: Tensor) -> bool:
        return output.is_floating_point() and output.ndim >= 1

    @override
    def check(self, output: Tensor, target: Any, values: bool = True) -> Tensor:
        target = needs_target(target)
        if _shape(output) != _shape(target):
            other = ", or task='classify' for class indices"
            hint = other if output.ndim == 2 and not target.is_floating_point() else ""
            raise DataError(
                f"targets have shape {list(target.shape)} but the outputs {list(output.shape)}: "
                f"give one target for each output{hint}"
            )
        if values and not bool(target.isfinite().all()):
            raise DataError("a target is NaN or infinite: leave such samples out")
        return target.reshape(output.shape)

    @override
    def losses(self, output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
        values = at_least_fp32(output)
        error = _LOSSES[self.options.distance]
        return per_sample(error(values, target.to(values.dtype), reduction="none"))

    @override
    def rows(self, output: Tensor, target: Any) -> Tensor:
        # By sample and value: how many positions, Σy, Σy², Σ(y - ŷ)²
        given, wanted = (x.double().reshape(len(x), _values(x), -1) for x in (output, target))
        errors = (wanted - given).square().nan_to_num(nan=torch.inf)
        sums = (torch.ones_like(wanted), wanted, wanted.square(), errors)
        return torch.cat([value.sum(2) for value in sums], dim=1)

    @override
    def quality(self, rows: Tensor) -> float:
        count, total, squares, errors = rows.sum(0).chunk(4)
        spread = squares - total.square() / count
        varies = spread > 1e-12 * squares  # below that it is rounding
        if not bool(varies.any()):
            raise DataError(
                "all targets are equal, so R² says nothing: check the data, or give evaluate="
            )
        return 100.0 * float((1.0 - errors[varies] / spread[varies]).clamp(min=_LEAST).mean())

    @override
    def chance(self, rows: Tensor) -> float:
        return 0.0

    @override
    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        """Return the mean squared difference of each sample's values, `[B]`."""
        return per_sample((at_least_fp32(output) - at_least_fp32(other)).square())


def _shape(values: Tensor) -> tuple[int, ...]:
    """Return the shape without the dimension of a single value."""
    shape = tuple(values.shape)
    return shape[:1] + shape[2:] if shape[1:2] == (1,) else shape


def _values(values: Tensor) -> int:
    return values.shape[1] if values.ndim > 1 else 1
