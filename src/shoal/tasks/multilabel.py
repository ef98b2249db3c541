"""Multi-label classification: each sample has any number of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from shoal.errors import DataError
from shoal.tasks.binary import binary_divergence, binary_losses, check_shares, sigmoid_notes
from shoal.tasks.task import Task, needs_target, register_task


@register_task("multilabel")
class MultiLabel(Task):
    """Any number of labels for each sample: binary cross-entropy in nats, mAP in percent.

    Outputs are logits `[batch, labels]`, targets 0 and 1 in the same shape. The loss is the mean
    over labels. The quality is the mean average precision, as on VOC and COCO: the average
    precision of each label by scikit-learn's definition, without interpolation, and the mean over
    labels that some sample has. It needs no threshold.
    """

    quality_name = "mAP"
    expected = "[batch, labels]"

    @override
    def fits(self, output: Tensor) -> bool:
        return output.ndim == 2 and output.is_floating_point()

    @override
    def check(self, output: Tensor, target: Any, values: bool = True) -> Tensor:
        target = needs_target(target)
        if not self.fits(output) or target.shape != output.shape:
            raise DataError(
                f"targets have shape {list(target.shape)} but the outputs {list(output.shape)}: "
                "give 0 or 1 for each label, [batch, labels], or task='classify' for one class of "
                "several"
            )
        return check_shares(target) if values else target

    @override
    def notes(self, output: Tensor, target: Any) -> Iterator[str]:
        yield from sigmoid_notes(output)

    @override
    def losses(self, output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
        return binary_losses(output, target, smoothing).mean(1)

    @override
    def hits(self, output: Tensor, target: Any) -> Tensor:
        return (((output > 0) == (target > 0.5)) & ~output.isnan()).double().mean(1)

    @override
    def rows(self, output: Tensor, target: Any) -> Tensor:
        # NaN is no answer: it ranks below all others.
        scores = output.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        return torch.cat([scores, (target > 0.5).double()], dim=1)

    @override
    def quality(self, rows: Tensor) -> float:
        from sklearn.metrics import average_precision_score  # takes a second to import

        scores, wanted = rows.chunk(2, dim=1)
        # Ranks are what counts, and scikit-learn takes no infinity.
        scores = scores.clamp(-_LARGEST, _LARGEST)
        used = [label for label in range(wanted.shape[1]) if bool(wanted[:, label].any())]
        if not used:
            raise DataError("no sample has a label, so there is no precision: check the targets")
        found = [average_precision_score(wanted[:, i].numpy(), scores[:, i].numpy()) for i in used]
        return 100.0 * float(sum(found)) / len(found)

    @override
    def chance(self, rows: Tensor) -> float:
        shares = rows.chunk(2, dim=1)[1].mean(0)
        return 100.0 * float(shares[shares > 0].mean())

    @override
    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        return binary_divergence(output, other).mean(1)

    @override
    def answers(self, output: Tensor) -> Tensor:
        return (output > 0).long()


_LARGEST = torch.finfo(torch.float64).max
