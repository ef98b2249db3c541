"""How far the network's answers move without a block, as a Kullback-Leibler divergence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from shoal.distributed import sum_across
from shoal.importance.criterion import register_criterion
from shoal.importance.scores import Scores
from shoal.importance.without import Answer, Without

__all__ = ["KL"]


@register_criterion("kl")
class KL(Without):
    """Scores a block by KL(without ‖ full) of the predicted classes, mean per sample, in nats.

    p is the softmax of the logits, taken once: KL = Σ p_without · (log p_without − log p_full).
    A block that does nothing scores 0. Needs no labels. (Jordao et al. 2023, the criterion "KL".)
    """

    unit = "nats"

    @override
    def start(self, names: Sequence[str]) -> None:
        self._row = {name: i for i, name in enumerate(names)}
        self._sums = torch.zeros(len(names), dtype=torch.float64)
        self._log_full = torch.zeros(0)

    @override
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        self._log_full = answer.logits.log_softmax(1)

    @override
    def without(self, name: str, answer: Answer) -> None:
        log_p = answer.logits.log_softmax(1)
        terms = log_p.exp() * (log_p - self._log_full)
        # Outputs of more than one position per sample count by their mean.
        positions = terms[0, 0].numel()
        self._sums[self._row[name]] += float(terms.double().sum()) / positions

    @override
    def finish(self, samples: int) -> Scores:
        means = (sum_across(self._sums) / samples).clamp(min=0.0).tolist()  # NaN stays
        return Scores(self.name, {name: means[row] for name, row in self._row.items()}, samples)
