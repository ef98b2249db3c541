"""Lesion: how much worse the network answers without a block (Veit et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from shoal.distributed import sum_across
from shoal.importance.criterion import MetricOptions, PlaceOptions, register_criterion
from shoal.importance.scores import Scores
from shoal.importance.without import Answer, Without
from shoal.training.losses import check_targets, count_hits, sample_losses

__all__ = ["Lesion"]


@register_criterion("lesion")
class Lesion(Without):
    """Scores a block by what its removal, without fine-tuning, costs (Veit et al. 2016, sec. 4.1).

    The score is how much the mean cross-entropy rises (nats), or how many points the accuracy
    falls. A block that does nothing scores 0; one that does harm is negative. Needs labels.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(PlaceOptions, MetricOptions):
        """What is scored, and by which figure."""

    options: Options

    @override
    def start(self, names: Sequence[str]) -> None:
        self._row = {name: i for i, name in enumerate(names, start=1)}
        self._sums = torch.zeros(len(names) + 1, 2, dtype=torch.float64)  # losses and hits
        self._target = torch.zeros(0)

    @override
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        check_targets(answer.logits, target)
        assert target is not None  # for mypy: check_targets has made sure of it
        self._target = target
        self._add(0, answer)

    @override
    def without(self, name: str, answer: Answer) -> None:
        self._add(self._row[name], answer)

    def _add(self, row: int, answer: Answer) -> None:
        losses = sample_losses(answer.logits, self._target)
        # One by one in float64: how the samples are put into batches then does not matter.
        self._sums[row, 0] += float(losses.double().sum())
        self._sums[row, 1] += float(count_hits(answer.logits, self._target))

    @override
    def finish(self, samples: int) -> Scores:
        means = (sum_across(self._sums) / samples).tolist()
        loss, share = means[0]
        details = {
            name: {"loss": means[row][0], "top1": 100.0 * means[row][1]}
            for name, row in self._row.items()
        }
        if self.options.metric == "loss":
            values = {name: means[row][0] - loss for name, row in self._row.items()}
        else:
            values = {name: 100.0 * (share - means[row][1]) for name, row in self._row.items()}
        return Scores(self.name, values, samples, details=details)
