"""What it costs to compute one tensor of a network in another way, candidate by candidate.

The network runs once per batch; each candidate runs again only what comes after its tensor. A race
spares work: whenever the samples have doubled, those leave that are clearly worse than the wanted
ones and, as in sequential halving (Karnin et al. 2013), the worse half, as late as the number of
samples allows. Who left meets no further samples. Once only as many are left as are wanted, the
race is over.

Some samples are dearer than others for everyone. So a candidate that left is scored by how far it
was behind the last of the wanted ones on the samples that both met, and by what that one costs on
all of its own: who left never comes before all who stayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.importance.scores import Scores
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.passes.batches import Batches
from shoal.passes.variants import Variants
from shoal.training.losses import check_targets, logits_of, sample_losses
from shoal.training.precision import autocast, resolve_precision

__all__ = ["Replacement", "check_metric", "replacement_scores"]

_FIRST_CHECK = 100  # samples before anyone may leave the race; then at each doubling
_CLEARLY = 3.0  # standard errors of the difference


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


def check_metric(metric: str) -> None:
    """Raise `ConfigError` unless `metric` is "loss" or "accuracy"."""
    if metric not in ("loss", "accuracy"):
        raise ConfigError(f"metric is '{metric}': choose 'loss' or 'accuracy'")


def replacement_scores(
    criterion: str,
    network: Network,
    replacements: Sequence[Replacement],
    loader: Iterable[Any],
    *,
    metric: str = "loss",
    precision: str = "auto",
    keep: int | None = 3,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score replacements by how much worse the network answers with each of them alone.

    Args:
        criterion: the name the scores carry.
        network: runs in eval mode; its state is left alone.
        replacements: the candidates, in the order of the forward pass.
        loader: the data with labels, unshuffled and without augmentation.
        metric: "loss" scores the rise of the mean cross-entropy in nats, "accuracy" the points of
            accuracy lost.
        precision: of the arithmetic, "auto", "fp32", "bf16" or "fp16".
        keep: so many of the best of each group are wanted; the others leave the race as it becomes
            plain that they are not among them, and it ends when no more than these are left. None
            scores all on all samples.
        samples: use this many samples only.
        progress: called with the batches done and their total.

    Raises:
        ConfigError: an option is wrong.
        DataError: the loader is empty or has no labels.
        TrainingError: the network computes NaN.
    """
    check_metric(metric)
    if keep is not None and keep < 1:
        raise ConfigError(f"keep is {keep}: give at least 1, or None to score all on all samples")
    race = _Race(network, replacements, metric, precision, keep)
    batches = Batches(loader, device_of(network), samples=samples, progress=progress)
    next_check = _FIRST_CHECK
    with eval_mode(network), torch.no_grad():
        for _, batch in batches.turns():
            if batch is not None:
                race.run(batch)
            if batches.seen >= next_check:
                race.leave(batches.seen, batches.expected)
                next_check = 2 * batches.seen
                if race.over:
                    break
    return race.scores(criterion, batches.seen, None if race.over else batches.population)


class _Race:
    """Sums of losses by candidate, and who still runs."""

    def __init__(
        self,
        network: Network,
        replacements: Sequence[Replacement],
        metric: str,
        precision: str,
        keep: int | None,
    ) -> None:
        self._replacements = list(replacements)
        self._weights = torch.tensor([r.weight for r in replacements], dtype=torch.float64)
        self._metric = metric
        self._keep = keep
        self._device = device_of(network)
        self._precision = resolve_precision(precision, self._device)
        self._variants = Variants(
            network,
            [r.node for r in replacements],
            reads={r.source for r in replacements},
        )
        self._running = list(range(len(replacements)))
        self._behind: dict[int, tuple[int, float]] = {}  # who left: behind whom, and how far
        # Of this process, by candidate: samples, loss, hits, cost above the network's, its square.
        self._sums = torch.zeros(len(replacements), 5, dtype=torch.float64)
        self._whole = torch.zeros(3, dtype=torch.float64)  # samples, loss, hits

    def run(self, batch: Batch) -> None:
        """Add a batch to the sums of those who run."""
        with autocast(self._precision, self._device):
            logits = logits_of(self._variants.run(*batch.args, **batch.kwargs))
        check_targets(logits, batch.target)
        assert batch.target is not None  # check_targets has seen to it; this tells mypy
        losses, hits = _measures(logits, batch.target)
        base = self._cost(losses, hits)
        self._whole += torch.stack([torch.tensor(batch.size), losses.sum(), hits.sum()])
        for i in self._running:
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

    def leave(self, seen: int, expected: int | None) -> None:
        """Let leave who is clearly behind and, where it is time, the worse half.

        Every process decides alike.

        Args:
            seen: samples so far.
            expected: samples there will be in all; None if not known.
        """
        if self._keep is None:
            return
        rise, variance = self._statistics(sum_across(self._sums.clone()))
        price, error = self._prices(rise, variance), variance * self._weights.square()
        for group in self._running_by_group():
            if len(group) <= self._keep:
                continue
            rounds = math.ceil(math.log2(len(group) / self._keep))
            halves = expected is not None and seen >= expected / 2**rounds
            order = sorted(group, key=lambda i: (float(price[i]), float(self._weights[i])))
            last = order[self._keep - 1]
            for place, i in enumerate(order[self._keep :], start=self._keep):
                distance = float(price[i] - price[last])
                clearly = distance > _CLEARLY * math.sqrt(error[i] + error[last])
                if clearly or (halves and place >= len(order) / 2):
                    self._running.remove(i)
                    self._behind[i] = last, distance

    def _prices(self, rise: Tensor, variance: Tensor) -> Tensor:
        """Return what decides the race: the costs, or the costs by what they buy.

        A cost below its own standard error is not told from it, and must not look better for
        buying less.
        """
        if bool((self._weights == 1.0).all()):
            return rise.clone()
        return torch.maximum(rise, variance.sqrt()) * self._weights

    def _running_by_group(self) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for i in self._running:
            groups.setdefault(self._replacements[i].group, []).append(i)
        return list(groups.values())

    @property
    def over(self) -> bool:
        """Whether the others have left and only those remain that are wanted."""
        if self._keep is None or not self._behind:
            return False
        return all(len(group) <= self._keep for group in self._running_by_group())

    def _rises_of_all(self, rise: Tensor, variance: Tensor) -> Tensor:
        """Return the rises, of those who left by how far they were behind."""
        price, found = self._prices(rise, variance), rise.clone()
        for i, (last, distance) in reversed(self._behind.items()):  # the last who left first
            price[i] = price[last] + distance
            found[i] = price[i] / self._weights[i]
        return found

    @staticmethod
    def _statistics(sums: Tensor) -> tuple[Tensor, Tensor]:
        """Return each candidate's mean cost above the network's, and that mean's variance."""
        n = sums[:, 0].clamp(min=1.0)
        rise = sums[:, 3] / n
        spread = (sums[:, 4] / n - rise.square()).clamp(min=0.0)
        return rise, spread / n

    def scores(self, criterion: str, samples: int, population: int | None) -> Scores:
        """Sum over processes and return the scores."""
        sums, whole = sum_across(self._sums), sum_across(self._whole)
        rise, variance = self._statistics(sums)
        if not bool(rise.isfinite().all() & whole.isfinite().all()):
            raise TrainingError(
                "the loss is not finite: the network's weights or its data are broken; check them "
                "before scoring"
            )
        names = [r.name for r in self._replacements]
        rise = self._rises_of_all(rise, variance)
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
