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
from torch import Tensor, fx
from typing_extensions import override

from shoal.importance.candidates import Candidate, candidates
from shoal.importance.criterion import Joint, PlaceOptions
from shoal.importance.scores import Scores
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.network.weights import is_weighted
from shoal.passes.batches import Data
from shoal.passes.variants import Variants
from shoal.training.losses import logits_of

__all__ = ["Answer", "Without"]

_Features: TypeAlias = tuple[fx.Node, int]
"""The node that gives the penultimate features, and its dimension of channels."""


@dataclass(frozen=True)
class Answer:
    """What the network, or a variant of it, gives for a batch.

    Attributes:
        logits: `[batch, classes, …]`, in float32 or better.
        features: the penultimate features, channels last: the input of the last layer with weights
            that all candidates come before; the logits where there is no such layer.
    """

    logits: Tensor
    features: Tensor


class Without(Joint):
    """A criterion that compares the network with what it is without each candidate."""

    asks = frozenset({"place"})
    Options = PlaceOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.needs = ("without", self.place)

    @abstractmethod
    def start(self, names: Sequence[str]) -> None:
        """Forget earlier figures; these are the candidates."""

    @abstractmethod
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        """Add the whole network's answer to the next batch."""

    @abstractmethod
    def without(self, name: str, answer: Answer) -> None:
        """Add its answer to the same batch without a candidate."""

    @abstractmethod
    def finish(self, samples: int) -> Scores:
        """Sum over processes and return the scores."""

    @classmethod
    @override
    def compute_together(
        cls, criteria: Sequence[Self], network: Network, data: Data
    ) -> list[Scores]:
        chosen = candidates(network, criteria[0].place)
        for criterion in criteria:
            criterion.start([candidate.name for candidate in chosen])
        features = _features(network, chosen)
        variants = Variants(
            network,
            [candidate.node for candidate in chosen],
            reads=[candidate.source for candidate in chosen],
            watch=() if features is None else features[:1],
        )
        batches = data.batches(device_of(network))
        with eval_mode(network), torch.no_grad():
            for _, batch in batches:
                whole = _answer(variants.run(*batch.args, **batch.kwargs), variants, features)
                for criterion in criteria:
                    criterion.whole(whole, batch.target)
                for candidate in chosen:
                    value = variants.value(candidate.source)
                    output = variants.with_override(candidate.node, value)
                    answer = _answer(output, variants, features)
                    for criterion in criteria:
                        criterion.without(candidate.name, answer)
        return [criterion.finish(batches.seen) for criterion in criteria]


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
