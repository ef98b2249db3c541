"""Criteria that ask what the network gives without a block (or with a site linearized).

Each candidate needs a pass over the rest of the network. Several criteria share these passes, and
all share what comes before the candidate, which is computed once per batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from typing_extensions import override

from shoal.distributed import sum_across
from shoal.importance.candidates import Candidate, Variants, candidates
from shoal.importance.criterion import (
    Joint,
    MetricOptions,
    PlaceOptions,
    Scores,
    register_criterion,
)
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.network.flow import is_weighted
from shoal.passes.batches import Data
from shoal.training.evaluate import check_targets, hits, logits_of, sample_losses

# The node that gives the penultimate features, and its dimension of channels.
_Features: TypeAlias = tuple[fx.Node, int]


@dataclass(frozen=True)
class Answer:
    """What the network, or a variant of it, gives for a batch."""

    logits: Tensor  # [batch, classes, …], in float32 or better
    # The penultimate features, channels last: the input of the last layer with weights that all
    # candidates come before; the logits where there is no such layer.
    features: Tensor


class Without(Joint):
    """A criterion that compares the network with what it is without each candidate."""

    asks = frozenset({"place"})
    Options = PlaceOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.needs = ("without", self.place)

    @abstractmethod
    def start(self, count: int) -> None:
        """Forget earlier figures; so many candidates follow."""

    @abstractmethod
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        """Add the whole network's answer to the next batch."""

    @abstractmethod
    def without(self, index: int, answer: Answer) -> None:
        """Add its answer to the same batch without a candidate, by number from 0."""

    @abstractmethod
    def finish(self, names: Sequence[str], samples: int) -> Scores:
        """Sum over processes and return the scores of the candidates, which have these names."""

    @classmethod
    @override
    def compute_together(
        cls, criteria: Sequence[Self], network: Network, data: Data
    ) -> list[Scores]:
        chosen = candidates(network, criteria[0].place)
        names = [candidate.name for candidate in chosen]
        for criterion in criteria:
            criterion.start(len(chosen))
        features = _features(network, chosen)
        variants = Variants(network, chosen, () if features is None else features[:1])
        batches = data.batches(device_of(network))
        with eval_mode(network), torch.no_grad():
            for _, batch in batches:
                whole = _answer(variants.run(*batch.args, **batch.kwargs), variants, features)
                for criterion in criteria:
                    criterion.whole(whole, batch.target)
                for index, candidate in enumerate(chosen):
                    answer = _answer(variants.run_with(candidate), variants, features)
                    for criterion in criteria:
                        criterion.without(index, answer)
        return [criterion.finish(names, batches.seen) for criterion in criteria]


def _features(network: Network, chosen: Sequence[Candidate]) -> _Features | None:
    """Find the input of the last layer with weights that all candidates come before."""
    flow = network.view.flow
    for node in reversed(flow.order):
        if not flow.carries(node) or not is_weighted(node, network):
            continue
        if all(flow.leads(candidate.node, node) for candidate in chosen):
            source = next(n for n in node.all_input_nodes if flow.carries(n))
            return source, network.view.channel_dim(source)
    return None


def _answer(output: Any, variants: Variants, features: _Features | None) -> Answer:
    logits = logits_of(output)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if features is None:
        return Answer(logits, logits.movedim(1, -1) if logits.dim() > 1 else logits)
    node, dim = features
    return Answer(logits, variants.watched(node).movedim(dim, -1))


@register_criterion("cka")
class CKA(Without):
    """Scores a block by 1 − CKA of the penultimate features with and without it (Pons et al. 2024).

    Lowest goes first: a block that does nothing leaves CKA at 1 and scores 0. Features are the
    inputs of the last layer with weights, channel by channel; positions of a sample count as
    samples. Needs no labels.
    """

    @override
    def start(self, count: int) -> None:
        # By rows x of the whole network and y of each variant: XᵀX, then YᵀY and XᵀY of each.
        self._count, self._products = 1 + 2 * count, torch.zeros(0)
        self._x = torch.zeros(0)

    @override
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        self._x = x = _rows(answer.features)
        if not len(self._products):
            self._products = x.new_zeros(self._count, x.shape[1], x.shape[1])
        self._products[0].addmm_(x.T, x)

    @override
    def without(self, index: int, answer: Answer) -> None:
        y = _rows(answer.features)
        self._products[1 + 2 * index].addmm_(y.T, y)
        self._products[2 + 2 * index].addmm_(self._x.T, y)

    @override
    def finish(self, names: Sequence[str], samples: int) -> Scores:
        width = self._products.shape[-1]
        total, processes = sum_across(torch.tensor([width, int(width > 0)])).tolist()
        if not width:  # this process had no batch
            width = total // max(1, processes)
            self._products = torch.zeros(self._count, width, width, dtype=torch.float64)
        own, *pairs = sum_across(self._products)
        aligned = (alignment(own, *pair) for pair in zip(pairs[::2], pairs[1::2], strict=True))
        values = [max(1.0 - cka, 0.0) for cka in aligned]  # NaN stays
        return Scores(self.name, dict(zip(names, values, strict=True)), samples)


def alignment(own: Tensor, other: Tensor, mutual: Tensor) -> float:
    """Return the linear CKA of features X and Y, from XᵀX, YᵀY and XᵀY.

    Each row is that of a sample, in float64, behind a 1, so that the products hold the sums as well
    and memory does not grow with the samples. CKA = ‖XᵀY‖²_F / (‖XᵀX‖_F · ‖YᵀY‖_F) for centred X
    and Y, in [0, 1] (Kornblith et al. 2019, eq. 4 with a linear kernel): 1 for equal features, also
    if both never vary; 0 if only one varies.
    """
    norms = []
    for sums in (own, other, mutual):
        products = sums[1:, 1:]
        norm = float((products - torch.outer(sums[1:, 0], sums[0, 1:]) / sums[0, 0]).norm())
        # Features that never vary have no norm but for rounding.
        norms.append(norm if norm > 1e-12 * float(products.norm()) else 0.0)
    x, y, both = norms
    if x == 0.0 or y == 0.0:
        return float("nan") if bool((own + other).isnan().any()) else float(x == y)
    return both**2 / (x * y)


def _rows(features: Tensor) -> Tensor:
    """Return features as `[samples, 1 + width]` in float64; positions count as samples."""
    rows = features.reshape(-1, features.shape[-1]) if features.dim() > 1 else features[:, None]
    if rows.device.type == "mps":  # it has no float64
        rows = rows.cpu()
    return F.pad(rows.double(), (1, 0), value=1.0)


@register_criterion("kl")
class KL(Without):
    """Scores a block by KL(without ‖ full) of the predicted classes, mean per sample, in nats.

    p is the softmax of the logits, taken once: KL = Σ p_without · (log p_without − log p_full).
    A block that does nothing scores 0. Needs no labels. (Jordao et al. 2023, the criterion "KL".)
    """

    unit = "nats"

    @override
    def start(self, count: int) -> None:
        self._sums = torch.zeros(count, dtype=torch.float64)
        self._log_full = torch.zeros(0)

    @override
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        self._log_full = answer.logits.log_softmax(1)

    @override
    def without(self, index: int, answer: Answer) -> None:
        log_p = answer.logits.log_softmax(1)
        terms = log_p.exp() * (log_p - self._log_full)
        # Outputs of more than one position per sample count by their mean.
        self._sums[index] += float(terms.double().sum()) / terms[0, 0].numel()

    @override
    def finish(self, names: Sequence[str], samples: int) -> Scores:
        means = (sum_across(self._sums) / samples).clamp(min=0.0).tolist()  # NaN stays
        return Scores(self.name, dict(zip(names, means, strict=True)), samples)


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
    def start(self, count: int) -> None:
        self._sums = torch.zeros(1 + count, 2, dtype=torch.float64)  # losses and hits
        self._target = torch.zeros(0)

    @override
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        self._target = check_targets(answer.logits, target)
        self.without(-1, answer)

    @override
    def without(self, index: int, answer: Answer) -> None:
        losses = sample_losses(answer.logits, self._target)
        # One by one in float64: how the samples are put into batches then does not matter.
        self._sums[index, 0] += float(losses.double().sum())
        self._sums[index, 1] += float(hits(answer.logits, self._target).sum())

    @override
    def finish(self, names: Sequence[str], samples: int) -> Scores:
        *means, whole = (sum_across(self._sums) / samples).tolist()
        found = dict(zip(names, means, strict=True))
        details = {n: {"loss": loss, "top1": 100.0 * share} for n, (loss, share) in found.items()}
        if self.options.metric == "loss":
            values = {name: loss - whole[0] for name, (loss, _) in found.items()}
        else:
            values = {name: 100.0 * (whole[1] - share) for name, (_, share) in found.items()}
        return Scores(self.name, values, samples, details=details)
