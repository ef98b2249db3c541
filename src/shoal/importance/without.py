"""Criteria that ask what the network gives without a block (or with a site linearized).

They need a pass over the rest of the network for each candidate. Several share these passes, and
all share what comes before the candidate, which is computed once per batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx
from typing_extensions import override

from shoal.importance.candidates import Candidate, candidates
from shoal.importance.criterion import Criterion
from shoal.importance.scores import Scores
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.network.weights import is_weighted
from shoal.options import one_of, option
from shoal.passes.batches import Data
from shoal.passes.variants import Variants
from shoal.training.losses import logits_of

__all__ = ["Answer", "Without"]


class Answer:
    """What the network, or a variant of it, says of a batch.

    Attributes:
        logits: `[batch, classes, …]`, in float32 or better.
        features: the penultimate features, channels last: the input of the last layer with weights
            that all candidates come before; the logits where there is no such layer.
    """

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits = logits
        self.features = features


class Without(Criterion):
    """A criterion that compares the network with what it is without each candidate."""

    asks = frozenset({"place"})

    @dataclass(frozen=True, kw_only=True)
    class Options(Criterion.Options):
        """What is left out."""

        place: str = option(
            "block",
            "block drops a block, site puts the identity in the place of a rectifier.",
            check=one_of("block", "site"),
        )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.needs = ("without", self.place)

    @abstractmethod
    def start(self, names: Sequence[str]) -> None:
        """Start from nothing; these are the candidates."""

    @abstractmethod
    def whole(self, answer: Answer, target: Tensor | None) -> None:
        """Add the answer of the whole network to the next batch."""

    @abstractmethod
    def without(self, name: str, answer: Answer) -> None:
        """Add its answer to that batch without a candidate."""

    @abstractmethod
    def finish(self, samples: int) -> Scores:
        """Sum over processes and return the scores."""

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        return self.compute_together([self], network, data)[0]

    @classmethod
    @override
    def compute_together(
        cls, criteria: Sequence[Self], network: Network, data: Data
    ) -> list[Scores]:
        chosen = candidates(network, criteria[0].place)
        for criterion in criteria:
            criterion.start([candidate.name for candidate in chosen])
        features = _Features.of(network, chosen)
        variants = Variants(
            network,
            [candidate.node for candidate in chosen],
            reads=[candidate.source for candidate in chosen],
            watch=() if features is None else (features.node,),
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


@dataclass(frozen=True)
class _Features:
    """Where the penultimate features are.

    Attributes:
        node: gives them.
        dim: its dimension of channels.
    """

    node: fx.Node
    dim: int

    @classmethod
    def of(cls, network: Network, chosen: Sequence[Candidate]) -> _Features | None:
        """Return the input of the last layer with weights that all candidates come before."""
        flow = network.view.flow
        for node in reversed(flow.order):
            if not flow.carries(node) or not is_weighted(node, network):
                continue
            if all(flow.leads(candidate.node, node) for candidate in chosen):
                source = next(n for n in node.all_input_nodes if flow.carries(n))
                return cls(source, network.view.channel_dim(source))
        return None


def _answer(output: Any, variants: Variants, features: _Features | None) -> Answer:
    logits = logits_of(output)
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if features is None:
        return Answer(logits, logits.movedim(1, -1) if logits.dim() > 1 else logits)
    return Answer(logits, variants.watched(features.node).movedim(features.dim, -1))
