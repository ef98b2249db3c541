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
from shoal.errors import ConfigError
from shoal.importance.candidates import Candidate, Variants, candidates
from shoal.importance.criterion import (
    Joint,
    MetricOptions,
    PlaceOptions,
    Scores,
    broken_last,
    judged_by,
    or_infinite,
    register_criterion,
)
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.network.flow import is_weighted
from shoal.passes.batches import Data
from shoal.tasks import Task
from shoal.tasks.task import at_least_fp32, hits_of, losses_of

# The node that gives the penultimate features, and its dimension of channels.
_Features: TypeAlias = tuple[fx.Node, int]


@dataclass(frozen=True)
class Answer:
    """What the network, or a variant of it, gives for a batch."""

    output: Any  # as the task finds it; a tensor [batch, …] is in float32 or better
    # The penultimate features, channels last: the input of the last layer with weights that all
    # candidates come before; the output where there is no such layer.
    features: Tensor
    size: int  # samples


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
    def whole(self, answer: Answer, target: Any) -> None:
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
        names, task = [candidate.name for candidate in chosen], criteria[0].task
        for criterion in criteria:
            criterion.start(len(chosen))
        features = _features(network, chosen)
        variants = Variants(network, chosen, () if features is None else features[:1])
        batches = data.batches(device_of(network))
        with eval_mode(network), torch.no_grad():
            for _, batch in batches:
                returned = variants.run(*batch.args, **batch.kwargs)
                whole = _answer(returned, batch.size, task, variants, features)
                for criterion in criteria:
                    criterion.whole(whole, batch.target)
                for index, candidate in enumerate(chosen):
                    returned = variants.run_with(candidate)
                    answer = _answer(returned, batch.size, task, variants, features)
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


def _answer(
    returned: Any, size: int, task: Task, variants: Variants, features: _Features | None
) -> Answer:
    output = task.output(returned)
    if isinstance(output, Tensor):
        output = at_least_fp32(output)
    if features is not None:
        node, dim = features
        return Answer(output, variants.watched(node).movedim(dim, -1), size)
    if not isinstance(output, Tensor):
        raise ConfigError(
            "the network has no layer that all of these come before, and its output is no single "
            "tensor to compare: choose a criterion that does not compare features"
        )
    return Answer(output, output.movedim(1, -1) if output.dim() > 1 else output, size)


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
    def whole(self, answer: Answer, target: Any) -> None:
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
        found = broken_last(dict(zip(names, values, strict=True)), float(own.sum()))
        return Scores(self.name, found, samples)


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
    """Scores a block by KL(without ‖ full) of the predictions, mean per sample, in nats.

    Of classes, p is the softmax of the logits, taken once: KL = Σ p_without · (log p_without −
    log p_full); of yes and no, their sigmoid. Outputs of more than one position per sample count by
    their mean. A block that does nothing scores 0. Needs no labels. (Jordao et al. 2023, the
    criterion "KL".)
    """

    unit = "nats"

    @override
    def start(self, count: int) -> None:
        self._sums = torch.zeros(count + 1, dtype=torch.float64)  # the network's own last
        self._full: Any = None

    @override
    def of_task(self, task: Task) -> Self:
        if task.has_divergence and task.loss_unit == "nats":
            return super().of_task(task)
        raise ConfigError(
            f"kl compares predicted probabilities, and the task '{task.name}' has none: choose "
            "another criterion, such as cka"
        )

    @override
    def whole(self, answer: Answer, target: Any) -> None:
        self._full = answer.output
        self.without(-1, answer)

    @override
    def without(self, index: int, answer: Answer) -> None:
        self._sums[index] += float(self.task.divergence(answer.output, self._full).double().sum())

    @override
    def finish(self, names: Sequence[str], samples: int) -> Scores:
        *means, own = (sum_across(self._sums) / samples).clamp(min=0.0).tolist()  # NaN stays
        found = broken_last(dict(zip(names, means, strict=True)), own)
        return Scores(self.name, found, samples)


@register_criterion("lesion")
class Lesion(Without):
    """Scores a block by what its removal, without fine-tuning, costs (Veit et al. 2016, sec. 4.1).

    The score is how much the task's mean loss rises, or how many percent of the answers are no
    longer right. A block that does nothing scores 0; one that does harm is negative. Needs labels.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(PlaceOptions, MetricOptions):
        """What is scored, and by which figure."""

    options: Options

    @override
    def of_task(self, task: Task) -> Self:
        return super().of_task(judged_by(task, self.options.metric))

    @override
    def start(self, count: int) -> None:
        self._sums = torch.zeros(1 + count, 2, dtype=torch.float64)  # losses and hits
        self._target: Any = None

    @override
    def whole(self, answer: Answer, target: Any) -> None:
        self._target = self.task.check(answer.output, target)
        self.without(-1, answer)

    @override
    def without(self, index: int, answer: Answer) -> None:
        losses = losses_of(self.task, answer.output, self._target, answer.size)
        # One by one in float64: how the samples are put into batches then does not matter.
        self._sums[index, 0] += float(losses.double().sum())
        if self.task.has_hits:
            hits = hits_of(self.task, answer.output, self._target, answer.size)
            self._sums[index, 1] += float(hits.sum())

    @override
    def finish(self, names: Sequence[str], samples: int) -> Scores:
        *means, whole = (sum_across(self._sums) / samples).tolist()
        found = dict(zip(names, means, strict=True))
        details = {name: {"loss": or_infinite(loss)} for name, (loss, _) in found.items()}
        if self.task.has_hits:
            details = {n: {**own, "top1": 100.0 * found[n][1]} for n, own in details.items()}
        if self.options.metric == "loss":
            values = {name: loss - whole[0] for name, (loss, _) in found.items()}
        else:
            values = {name: 100.0 * (whole[1] - share) for name, (_, share) in found.items()}
        return Scores(self.name, broken_last(values, whole[0]), samples, details=details)
