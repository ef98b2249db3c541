"""Centred kernel alignment of the network's features with and without a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from shoal.distributed import sum_across
from shoal.importance.criterion import register_criterion
from shoal.importance.scores import Scores
from shoal.importance.without import Answer, Without

__all__ = ["CKA", "Alignment", "FeatureSums"]


class FeatureSums:
    """What linear CKA needs of one network's features: n, Σx and XᵀX, in float64."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Tensor) -> None:
        """Add samples, `[samples, features]` in float64."""
        self.count += len(x)
        self.total += x.sum(0)
        self.products.addmm_(x.T, x)

    def across(self) -> None:
        """Sum over processes."""
        for part in (self.count, self.total, self.products):
            sum_across(part)


class Alignment:
    """Linear CKA of features Y with features X, from running sums.

    CKA = ‖XᵀY‖²_F / (‖XᵀX‖_F · ‖YᵀY‖_F) for centred X and Y, in [0, 1] (Kornblith et al. 2019,
    eq. 4 with a linear kernel). Sums are all it needs: memory does not grow with the number of
    samples.

    Args:
        own: of X; the caller adds its samples there, once for all alignments with X.
    """

    def __init__(self, own: FeatureSums) -> None:
        self.own = own
        self.other = FeatureSums(len(own.total), own.total.device)
        self.mutual = torch.zeros_like(own.products)  # XᵀY

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add samples of both, `[samples, features]` in float64."""
        self.other.add(y)
        self.mutual.addmm_(x.T, y)

    def across(self) -> None:
        """Sum over processes, but for `own`."""
        self.other.across()
        sum_across(self.mutual)

    def value(self) -> float:
        """Return CKA: 1 for equal features, also if both never vary; 0 if only one varies."""
        n, x, y = self.own.count, self.own.total, self.other.total
        norms = []
        for product, left, right in (
            (self.own.products, x, x),
            (self.other.products, y, y),
            (self.mutual, x, y),
        ):
            centred = product - torch.outer(left, right) / n
            # Features that never vary have no norm but for rounding.
            norm = float(centred.norm())
            norms.append(norm if norm > 1e-12 * float(product.norm()) else 0.0)
        own, other, mutual = norms
        if own == 0.0 or other == 0.0:
            broken = (self.own.products + self.other.products).isnan().any()
            return float("nan") if broken else float(own == other)
        return mutual**2 / (own * other)


@register_criterion("cka")
class CKA(Without):
    """Scores a block by 1 − CKA of the penultimate features with and without it (Pons et al. 2024).

    Lowest goes first: a block that does nothing leaves CKA at 1 and scores 0. Features are the
    inputs of the last layer with weights, channel by channel; positions of a sample count as
    samples. Needs no labels.
    """

    @override
    def start(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._x = torch.zeros(0)
        self._own: FeatureSums | None = None
        self._alignments: dict[str, Alignment] = {}

    def _begin(self, width: int, device: torch.device | str = "cpu") -> FeatureSums:
        self._own = FeatureSums(width, device)
        self._alignments = {name: Alignment(self._own) for name in self._names}
        return self._own

    @override
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        self._x = _rows(answer.features)
        own = self._own or self._begin(self._x.shape[1], self._x.device)
        own.add(self._x)

    @override
    def without(self, name: str, answer: Answer) -> None:
        self._alignments[name].add(self._x, _rows(answer.features))

    @override
    def finish(self, samples: int) -> Scores:
        width = 0 if self._own is None else len(self._own.total)
        total, processes = sum_across(torch.tensor([width, int(width > 0)])).tolist()
        own = self._own or self._begin(total // max(1, processes))  # zeros: it had no batch
        own.across()
        values = {}
        for name, alignment in self._alignments.items():
            alignment.across()
            cka = alignment.value()
            values[name] = cka if cka != cka else max(0.0, 1.0 - cka)
        return Scores(self.name, values, samples)


def _rows(features: Tensor) -> Tensor:
    """Return features as `[samples, width]` in float64; positions count as samples."""
    rows = features.reshape(-1, features.shape[-1]) if features.dim() > 1 else features[:, None]
    if rows.device.type == "mps":  # it has no float64
        rows = rows.cpu()
    return rows.double()
