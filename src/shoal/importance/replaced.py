"""What it costs to compute one tensor of a network in another way, candidate by candidate.

The network runs once per batch; each candidate runs again only what comes after its tensor.
Successive halving saves the work on those that are clearly not among the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import TrainingError
from shoal.importance.criterion import MetricOptions
from shoal.importance.scores import Scores
from shoal.importance.successive_halving import SuccessiveHalving
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.options import at_least, one_of, option
from shoal.passes.batches import Data
from shoal.passes.variants import Variants
from shoal.training.losses import check_targets, logits_of, sample_losses
from shoal.training.precision import autocast, resolve_precision

__all__ = ["Replacement", "TrialOptions", "replacement_scores"]


@dataclass(frozen=True)
class Replacement:
    """Another way to compute a tensor.

    Attributes:
        name: of the site or stretch.
        node: whose value is replaced.
        source: whose value it is computed from.
        compute: does it.
        weight: the race is decided by the cost times this.
        group: each group has a race of its own.
    """

    name: str
    node: fx.Node
    source: fx.Node
    compute: Callable[[Tensor], Tensor]
    weight: float = 1.0
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class TrialOptions(MetricOptions):
    """How criteria that try replacements judge them."""

    keep: int | None = option(
        1,
        "How many of the best are wanted; the others are judged on fewer samples, as their details "
        "say, once they are clearly not among them. null judges all on all samples.",
        check=at_least(1),
    )
    precision: str = option(
        "auto",
        "Of the pass that judges; auto takes bf16 where the hardware computes in it.",
        check=one_of("auto", "fp32", "bf16", "fp16"),
    )


def replacement_scores(
    criterion: str,
    network: Network,
    replacements: Sequence[Replacement],
    data: Data,
    options: TrialOptions,
) -> Scores:
    """Score replacements by how much worse the network answers with each of them alone.

    Args:
        criterion: the name the scores carry.
        network: runs in eval mode; its state is left alone.
        replacements: the candidates, in the order of the forward pass.
        data: with labels, unshuffled and without augmentation.
        options: how to judge; `keep` holds for each group.

    Raises:
        DataError: the loader is empty or has no labels.
        TrainingError: the network computes NaN.
    """
    race = SuccessiveHalving(
        [r.weight for r in replacements], [r.group for r in replacements], options.keep
    )
    sums = _Sums(network, replacements, options)
    batches = data.batches(device_of(network))
    with eval_mode(network), torch.no_grad():
        for _, batch in batches.turns():
            if batch is not None:
                sums.add(batch, race.running)
            if race.due(batches.seen):  # in every process alike
                race.drop_out(*sums.costs(), batches.seen, batches.expected)
                if race.over:
                    break
    population = None if race.over else batches.population
    return sums.scores(criterion, race, batches.seen, population)


class _Sums:
    """Sums of losses by candidate."""

    def __init__(
        self, network: Network, replacements: Sequence[Replacement], options: TrialOptions
    ) -> None:
        self._replacements = list(replacements)
        self._metric = options.metric
        self._device = device_of(network)
        self._precision = resolve_precision(options.precision, self._device)
        self._variants = Variants(
            network, [r.node for r in replacements], reads={r.source for r in replacements}
        )
        # Of this process, by candidate: samples, loss, hits, cost above the network's, its square.
        self._sums = torch.zeros(len(replacements), 5, dtype=torch.float64)
        self._whole = torch.zeros(3, dtype=torch.float64)  # samples, loss, hits

    def add(self, batch: Batch, running: Sequence[int]) -> None:
        """Add a batch to the sums of the candidates that run."""
        with autocast(self._precision, self._device):
            logits = logits_of(self._variants.run(*batch.args, **batch.kwargs))
        check_targets(logits, batch.target)
        assert batch.target is not None  # for mypy: check_targets has made sure of it
        losses, hits = _measures(logits, batch.target)
        base = self._cost(losses, hits)
        self._whole += torch.stack([torch.tensor(batch.size), losses.sum(), hits.sum()])
        for i in running:
            r = self._replacements[i]
            with autocast(self._precision, self._device):
                value = r.compute(self._variants.value(r.source))
                logits = logits_of(self._variants.with_override(r.node, value))
            losses, hits = _measures(logits, batch.target)
            above = self._cost(losses, hits) - base
            sums = losses.sum(), hits.sum(), above.sum(), above.square().sum()
            self._sums[i] += torch.stack([torch.tensor(batch.size), *sums])

    def _cost(self, losses: Tensor, hits: Tensor) -> Tensor:
        return losses if self._metric == "loss" else -100.0 * hits

    def costs(self) -> tuple[Tensor, Tensor]:
        """Return each candidate's mean cost above the network's, and that mean's variance."""
        return _statistics(sum_across(self._sums.clone()))

    def scores(
        self, criterion: str, race: SuccessiveHalving, samples: int, population: int | None
    ) -> Scores:
        sums, whole = sum_across(self._sums), sum_across(self._whole)
        rise, variance = _statistics(sums)
        if not bool(rise.isfinite().all() & whole.isfinite().all()):
            raise TrainingError(
                "the loss is not finite: the network's weights or its data are broken; check them "
                "before scoring"
            )
        names = [r.name for r in self._replacements]
        rise = race.costs_of_all(rise, variance)
        unseen = torch.ones_like(rise)
        if population:
            unseen = (1.0 - sums[:, 0] / population).clamp(min=0.0)
        errors = (variance * unseen).sqrt()
        details = {
            name: {
                "loss": float(row[1] / row[0]),
                "top1": float(100.0 * row[2] / row[0]),
                "samples": int(row[0]),
                "whole_loss": float(whole[1] / whole[0]),
                "cost_standard_error": math.sqrt(float(spread)),
            }
            for name, row, spread in zip(names, sums, variance, strict=True)
        }
        return Scores(
            criterion,
            dict(zip(names, rise.tolist(), strict=True)),
            samples,
            dict(zip(names, errors.tolist(), strict=True)),
            _is_settled(rise, errors),
            details,
        )


def _statistics(sums: Tensor) -> tuple[Tensor, Tensor]:
    n = sums[:, 0].clamp(min=1.0)
    rise = sums[:, 3] / n
    spread = (sums[:, 4] / n - rise.square()).clamp(min=0.0)
    return rise, spread / n


def _measures(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return each sample's loss in nats and whether it is answered right, in float64."""
    wanted = target.argmax(dim=1) if target.is_floating_point() else target
    right = logits.argmax(dim=1) == wanted
    return sample_losses(logits, target).double().cpu(), right.double().cpu()


def _is_settled(rise: Tensor, errors: Tensor) -> bool:
    """Whether the lowest is below all others by more than twice the error of the difference."""
    lowest = int(rise.argmin())
    margin = 2.0 * (errors.square() + errors[lowest].square()).sqrt()
    others = torch.arange(len(rise)) != lowest
    return bool((rise - rise[lowest] > margin)[others].all())
