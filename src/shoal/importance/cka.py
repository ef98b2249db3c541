"""Centred kernel alignment of the network's features with and without a block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal.distributed import sum_across
from shoal.importance.criteria import criteria
from shoal.importance.scores import Scores
from shoal.importance.without import Answer, Without

__all__ = ["CKA", "Alignment"]


class Alignment:
    """Linear CKA (Kornblith et al. 2019, eq. 3) of paired features, from running sums.

    CKA = ‖XᵀY‖²_F / (‖XᵀX‖_F · ‖YᵀY‖_F) for centred X and Y, in [0, 1]. Sums of X, Y and of
    the products of features are all it needs: memory does not grow with the number of samples,
    and time grows linearly with it.
    """

    def __init__(self) -> None:
        self.parts: list[Tensor] | None = None  # n, Σx, Σy, XᵀX, YᵀY, XᵀY in float64

    def add(self, x: Tensor, y: Tensor, x_products: Tensor | None = None) -> None:
        """Add samples.

        Args:
            x: `[samples, features]`, float64.
            y: `[samples, features of the other]`, float64.
            x_products: XᵀX if it is known already.
        """
        xx = x.T @ x if x_products is None else x_products
        new = [torch.tensor(float(len(x))), x.sum(0), y.sum(0), xx, y.T @ y, x.T @ y]
        new = [part.cpu().double() for part in new]
        if self.parts is None:
            self.parts = [part.clone() for part in new]
            return
        for part, more in zip(self.parts, new, strict=True):
            part += more

    def value(self) -> float:
        """Return CKA: 1 for equal features, also if both never vary; 0 if only one varies."""
        if self.parts is None:
            return float("nan")
        n, x, y, xx, yy, xy = self.parts
        norms = []
        for product, left, right in ((xx, x, x), (yy, y, y), (xy, x, y)):
            centred = product - torch.outer(left, right) / n
            # What rounding leaves of features that never vary is nothing.
            norm = float(centred.norm())
            norms.append(norm if norm > 1e-12 * float(product.norm()) else 0.0)
        own, other, mutual = norms
        if own == 0.0 or other == 0.0:
            return float(own == other) if not _is_nan(xx, yy) else float("nan")
        return mutual**2 / (own * other)


def _is_nan(*values: Tensor) -> bool:
    return any(bool(value.isnan().any()) for value in values)


@criteria.register("cka")
class CKA(Without):
    """Scores a block by 1 − CKA of the penultimate features with and without it (Pons et al. 2024).

    Lowest goes first: a block that does nothing leaves CKA at 1 and scores 0. Features are the
    inputs of the last linear layer. Needs no labels.

    Args:
        unit: "block", or "site" for rectifiers replaced by the identity.
    """

    name = "cka"

    def start(self, names: Sequence[str]) -> None:
        """Forget what was collected; these are the candidates."""
        self._alignments = {name: Alignment() for name in names}
        self._x = self._xx = torch.zeros(0)

    def whole(self, answer: Answer, target: Tensor | None) -> None:
        """Hear what the whole network says of the next batch."""
        self._x = _rows(answer.features)
        self._xx = self._x.T @ self._x

    def without(self, name: str, answer: Answer) -> None:
        """Hear what it says of that batch without a candidate."""
        self._alignments[name].add(self._x, _rows(answer.features), self._xx)

    def finish(self, samples: int) -> Scores:
        """Sum over processes and return the scores."""
        values = {}
        width = int(_most_across(self._x.shape[-1]))
        for name, alignment in self._alignments.items():
            if alignment.parts is None:  # this process had no batch
                nothing = torch.zeros(1, width, dtype=torch.float64)
                alignment.add(nothing, nothing)
                assert alignment.parts is not None
                alignment.parts[0].zero_()
            alignment.parts = [sum_across(part) for part in alignment.parts]
            cka = alignment.value()
            values[name] = cka if cka != cka else max(0.0, 1.0 - cka)
        return Scores(self.name, values, samples)


def _rows(features: Tensor) -> Tensor:
    """Return features as `[samples, width]` in float64; positions of a sample are rows too."""
    rows = features.reshape(-1, features.shape[-1]) if features.dim() > 1 else features[:, None]
    if rows.device.type == "mps":  # it has no float64
        rows = rows.cpu()
    return rows.double()


def _most_across(width: int) -> int:
    """Return the width that the processes with batches saw; those without saw 0."""
    seen = sum_across(torch.tensor([width, int(width > 0)]))
    return int(seen[0]) // max(1, int(seen[1]))
