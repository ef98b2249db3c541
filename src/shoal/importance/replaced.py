"""What it costs to compute one tensor of a network in another way, candidate by candidate.

The network runs once per batch; each candidate runs again only what comes after its tensor.
Successive halving saves the work on those that are clearly not among the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import OptionError, TrainingError
from shoal.importance.candidates import Candidate, Variants
from shoal.importance.criterion import MetricOptions, Scores, judged_by, or_infinite
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.options import at_least, one_of, option
from shoal.passes.batches import Data
from shoal.tasks import Task, find_task
from shoal.tasks.task import hits_of, losses_of
from shoal.training.evaluate import autocast, resolve_precision

_FIRST_CHECK = 100  # samples before anyone may drop out; then at each doubling
_CLEARLY = 3.0  # standard errors of the difference


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
    candidates: Sequence[Candidate],
    data: Data,
    options: TrialOptions,
    task: Task | None = None,
) -> Scores:
    """Score candidates, under a criterion's name, by how much worse each alone makes the answers.

    The data have labels and are neither shuffled nor augmented; `options.keep` holds for each
    group. The network runs in eval mode; its state is left alone. The task is classification where
    none is given.
    """
    race = SuccessiveHalving(
        [c.weight for c in candidates], [c.group for c in candidates], options.keep
    )
    trials = _Trials(network, candidates, options, task or find_task())
    batches = data.batches(device_of(network))
    with eval_mode(network), torch.no_grad():
        for _, batch in batches.turns():
            if batch is not None:
                trials.add(batch, race.running)
            if race.due(batches.seen):  # in every process alike
                race.drop_out(*trials.costs(), batches.seen, batches.expected)
                if race.over:
                    break
    population = None if race.over else batches.population
    return trials.scores(criterion, race, batches.seen, population)


class _Trials:
    """What the network, and each candidate in it, answers."""

    def __init__(
        self,
        network: Network,
        candidates: Sequence[Candidate],
        options: TrialOptions,
        task: Task,
    ) -> None:
        self._task = judged_by(task, options.metric)
        self._candidates = candidates
        self._metric = options.metric
        self._device = device_of(network)
        self._precision = resolve_precision(options.precision, self._device)
        self._variants = Variants(network, candidates)
        # Of this process, by candidate after the network itself: samples, loss, hits, cost above
        # the network's, its square.
        self._sums = torch.zeros(1 + len(candidates), 5, dtype=torch.float64)

    def add(self, batch: Batch, running: Sequence[int]) -> None:
        """Add a batch to the sums of the network and of the candidates that run."""
        task = self._task
        with autocast(self._precision, self._device):
            output = task.output(self._variants.run(*batch.args, **batch.kwargs))
        target = task.check(output, batch.target)
        base = self._add(0, output, target, batch.size, 0.0)
        for i in running:
            with autocast(self._precision, self._device):
                output = task.output(self._variants.run_with(self._candidates[i]))
            self._add(1 + i, output, target, batch.size, base)

    def _add(self, row: int, output: Any, target: Any, size: int, base: Tensor | float) -> Tensor:
        """Add to a row of the sums, and return each sample's cost, in float64."""
        losses = losses_of(self._task, output, target, size).double().cpu()
        right = torch.zeros_like(losses)
        if self._task.has_hits:
            right = hits_of(self._task, output, target, size).double().cpu()
        cost = losses if self._metric == "loss" else -100.0 * right
        above = cost - base
        sums = losses.sum(), right.sum(), above.sum(), above.square().sum()
        self._sums[row] += torch.stack([torch.tensor(len(losses)), *sums])
        return cost

    def costs(self) -> tuple[Tensor, Tensor]:
        """Return each candidate's mean cost above the network's, and that mean's variance."""
        return _statistics(sum_across(self._sums.clone()))

    def scores(
        self, criterion: str, race: SuccessiveHalving, samples: int, population: int | None
    ) -> Scores:
        """Sum over processes and return the scores."""
        whole, *rows = sums = sum_across(self._sums)
        rise, variance = _statistics(sums)
        if not bool(whole.isfinite().all()):
            raise TrainingError(
                "the loss is not finite: the network's weights or its data are broken; check them "
                "before scoring"
            )
        names = [c.name for c in self._candidates]
        rise = race.costs_of_all(rise, variance)
        unseen = torch.ones_like(rise)
        if population:
            unseen = (1.0 - sums[1:, 0] / population).clamp(min=0.0)
        errors = (variance * unseen).sqrt()
        details = {
            name: {
                "loss": or_infinite(float(row[1] / row[0])),
                **({"top1": float(100.0 * row[2] / row[0])} if self._task.has_hits else {}),
                "samples": int(row[0]),
                "whole_loss": float(whole[1] / whole[0]),
                "cost_standard_error": math.sqrt(float(spread)),
            }
            for name, row, spread in zip(names, rows, variance, strict=True)
        }
        values, spreads = (dict(zip(names, v.tolist(), strict=True)) for v in (rise, errors))
        return Scores(criterion, values, samples, spreads, _is_settled(rise, errors), details)


def _statistics(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Return each candidate's mean cost and its variance; infinite where it is not finite."""
    n = sums[1:, 0].clamp(min=1.0)
    rise = sums[1:, 3] / n
    spread = (sums[1:, 4] / n - rise.square()).clamp(min=0.0)
    known = rise.isfinite() & spread.isfinite()
    return rise.where(known, math.inf), (spread / n).where(known, 0.0)


def _is_settled(rise: Tensor, errors: Tensor) -> bool:
    """Whether the lowest is below all others by more than twice the error of the difference."""
    lowest = int(rise.argmin())
    margin = 2.0 * (errors.square() + errors[lowest].square()).sqrt()
    others = torch.arange(len(rise)) != lowest
    return bool((rise - rise[lowest] > margin)[others].all())


class SuccessiveHalving:
    """Finds the cheapest of many contestants without measuring the others to the end.

    Whenever the samples have doubled, those drop out that are clearly worse than the wanted ones
    and, as late as the number of samples allows, the worse half (Jamieson & Talwalkar 2016, after
    the sequential halving of Karnin et al. 2013). Once only the wanted ones are left, the race is
    over.

    Some samples cost more than others for everyone. So a contestant that dropped out is judged by
    how far it was behind the last of the wanted ones on the samples that both met, and by what that
    one costs on all of its own: it never comes before all that stayed.

    The race is decided by the costs times each contestant's weight. Each group has a race of its
    own, of which so many of the best are wanted (`keep`); None keeps all.
    """

    def __init__(self, weights: Sequence[float], groups: Sequence[str], keep: int | None) -> None:
        if keep is not None and keep < 1:
            raise OptionError("keep", keep, "at least 1, or None to score all on all data")
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._groups = list(groups)
        self._keep = len(groups) if keep is None else keep
        self._next_check = _FIRST_CHECK
        self._behind: dict[int, tuple[int, float]] = {}  # behind whom, how far
        self.running = list(range(len(self._groups)))  # those that have not dropped out

    def due(self, seen: int) -> bool:
        """Whether to check now, after `seen` samples; the next time is when they have doubled."""
        if seen < self._next_check:
            return False
        self._next_check = 2 * seen
        return True

    def drop_out(self, costs: Tensor, variances: Tensor, seen: int, expected: int | None) -> None:
        """Drop those that are clearly behind and, where it is time, the worse half.

        Costs are each contestant's mean over the samples it has met, in float64, and variances
        those of the means; so many samples were seen, of so many expected if that is known.
        """
        price, error = self._prices(costs, variances), variances * self._weights.square()
        for group in self._running_groups():
            if len(group) <= self._keep:
                continue
            rounds = math.ceil(math.log2(len(group) / self._keep))
            halves = expected is not None and seen >= expected / 2**rounds
            order = sorted(group, key=lambda i: (float(price[i]), float(self._weights[i])))
            last = order[self._keep - 1]
            for rank, i in enumerate(order[self._keep :], start=self._keep):
                distance = float(price[i] - price[last]) if price[i] < math.inf else math.inf
                clearly = distance > _CLEARLY * math.sqrt(error[i] + error[last])
                if clearly or (halves and rank >= len(order) / 2):
                    self.running.remove(i)
                    self._behind[i] = last, distance

    @property
    def over(self) -> bool:
        """Whether others have dropped out and only the wanted ones remain."""
        few = (len(group) <= self._keep for group in self._running_groups())
        return bool(self._behind) and all(few)

    def costs_of_all(self, costs: Tensor, variances: Tensor) -> Tensor:
        """Return the costs, of those that dropped out by how far they were behind."""
        price, found = self._prices(costs, variances), costs.clone()
        for i, (last, distance) in reversed(self._behind.items()):  # the last one first
            price[i] = price[last] + distance
            found[i] = price[i] / self._weights[i] if price[i] < math.inf else math.inf
        return found

    def _prices(self, costs: Tensor, variances: Tensor) -> Tensor:
        # A cost below its own standard error cannot be distinguished from it, and must not look
        # better for saving less.
        if bool((self._weights == 1.0).all()):
            return costs.clone()
        prices = torch.maximum(costs, variances.sqrt()) * self._weights
        return prices.where(costs < math.inf, math.inf)

    def _running_groups(self) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for i in self.running:
            groups.setdefault(self._groups[i], []).append(i)
        return list(groups.values())
