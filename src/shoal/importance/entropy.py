"""The entropy of rectifier states (Quétu et al. 2024, "The Simpler The Better", eq. 3 to 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.importance.candidates import block_candidates, rectifiers
from shoal.importance.criterion import OnePass, Scores, register_criterion
from shoal.network import Network, Site
from shoal.options import one_of, option
from shoal.passes.states import count_states

# Entropies of single batches are added up as integers of this many parts of a bit: the sum then
# does not depend on which process adds which batch.
_PARTS_OF_A_BIT = 1 << 40

GROUPS = 32  # that samples are dealt to
_FEWEST = 16  # groups; an error from fewer pairs is itself too uncertain


def binary_entropy(on: Tensor, off: Tensor) -> Tensor:
    """Return each neuron's entropy in bits, float64 (eq. 4 to 6), of how often it was ON and OFF.

    H = −Σ p log2 p over p(ON) = on / (on + off) and p(OFF) = 1 − p(ON); 0 for a neuron that was
    never in either state.
    """
    total = (on + off).double().clamp(min=1.0)
    p, q = on.double() / total, off.double() / total
    return -(torch.xlogy(p, p) + torch.xlogy(q, q)) / math.log(2.0)


@register_criterion("entropy")
class Entropy(OnePass):
    """Scores each site by the mean entropy of its neurons' ON/OFF states.

    A neuron is a channel; its counts run over samples and positions ("additional sum and average
    over the entire feature map"). A site whose neurons always are in one state acts linearly and
    scores 0. The state is the sign of the rectifier's input, for every kind of rectifier.
    """

    place = "site"
    unit = "bits"
    twin = "block_entropy"

    @dataclass(frozen=True, kw_only=True)
    class Options(OnePass.Options):
        """What is counted, and over what."""

        zeros: str = option(
            "exclude",
            "What z = 0 counts as: in no state (eq. 3, the paper), ON (the published code) or OFF.",
            check=one_of("exclude", "on", "off"),
        )
        pooling: str = option(
            "all",
            "all counts over the whole data set (the paper); batch averages the entropies of "
            "single batches (the published code), which is lower the smaller the batch.",
            check=one_of("all", "batch"),
        )
        neurons: str = option(
            "all",
            "Mean over all neurons (the paper), or over the 'mixed' ones alone, which were in both "
            "states (EGP, NEPENTHE).",
            check=one_of("all", "mixed"),
        )

    options: Options

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._sites: list[Site] = []
        self._on: dict[str, Tensor] = {}  # [GROUPS, channels]
        self._off: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # [GROUPS]: entropies of batches, for pooling="batch"
        self._dealt = torch.zeros(2, GROUPS, dtype=torch.int64)  # samples and batches per group
        self._batch = (0, 0)  # index and size of the present one
        self._piece = (0, 0)  # of that batch: first sample and size
        self.in_pieces = self.options.pooling == "all"
        self._samples = 0
        self._population: int | None = None

    @override
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        rectifiers(network)
        return self._watch(network)

    def _watch(self, network: Network) -> Sequence[RemovableHandle]:
        self._sites = [site for site in network.sites if site.linearized is None]
        self._on, self._off, self._sums = {}, {}, {}
        self._dealt = torch.zeros(2, GROUPS, dtype=torch.int64)
        handles = []
        for site in self._sites:
            shape = network.node_of(site.name).meta.get("shape") or (0,)
            batch_first = shape[0] is None and site.channel_dim != 0
            counter = partial(self._count, site, batch_first)
            handles.append(network.get_submodule(site.name).register_forward_pre_hook(counter))
        return handles

    @override
    def begin(self, index: int, batch: Batch) -> None:
        # Samples are dealt to groups, of which standard errors leave out one; in turn, because
        # neighbours may be of one class: each group then is like the whole.
        size = batch.size
        self._batch = (index, size)
        self._dealt[0] += ((index * size + torch.arange(size)) % GROUPS).bincount(minlength=GROUPS)
        self._dealt[1, index % GROUPS] += 1

    @override
    def piece(self, first: int, size: int) -> None:
        self._piece = (first, size)

    def _count(
        self, site: Site, batch_first: bool, module: nn.Module, inputs: tuple[Tensor, ...]
    ) -> None:
        z, (index, size), (first, count) = inputs[0], self._batch, self._piece
        by_sample = batch_first and z.shape[0] % count == 0
        parts, start = (count, index * size + first) if by_sample else (1, index)
        on, off = count_states(z, site.channel_dim, parts, min(parts, GROUPS))
        if self.options.zeros != "exclude":
            on, off = self._with_zeros(z, on, off, parts)
        if site.name not in self._on:
            self._on[site.name] = on.new_zeros((GROUPS, on.shape[1]))
            self._off[site.name] = torch.zeros_like(self._on[site.name])
            self._sums[site.name] = on.new_zeros(GROUPS)
        _add_in_turn(self._on[site.name], on, start % GROUPS)
        _add_in_turn(self._off[site.name], off, start % GROUPS)
        if self.options.pooling == "batch":
            bits = self._mean(binary_entropy(on.sum(0).cpu(), off.sum(0).cpu()))
            self._sums[site.name][index % GROUPS] += int(bits.nan_to_num() * _PARTS_OF_A_BIT)

    def _with_zeros(self, z: Tensor, on: Tensor, off: Tensor, parts: int) -> tuple[Tensor, Tensor]:
        dealt = torch.arange(parts, device=on.device).remainder(len(on)).bincount()
        zeros = z.numel() // (parts * on.shape[1]) * dealt[:, None] - on - off
        return (on + zeros, off) if self.options.zeros == "on" else (on, off + zeros)

    @override
    def finish(self, samples: int, population: int | None) -> None:
        self._samples, self._population = samples, population
        sum_across(self._dealt)
        for site in self._sites:
            empty = torch.zeros(GROUPS, site.channels or 1, dtype=torch.int64)
            for counts, none in ((self._on, empty), (self._off, empty), (self._sums, empty[:, 0])):
                mine = counts.get(site.name, none)  # nothing if this process had no batch
                counts[site.name] = sum_across(mine.cpu().clone())
            if bool((self._on[site.name] < 0).any() or (self._off[site.name] < 0).any()):
                raise TrainingError(
                    f"the input of site '{site.name}' is NaN: the network's weights or its data "
                    "are broken; check them before scoring"
                )

    @override
    def scores(self) -> Scores:
        values = {site.name: self._entropy(site.name) for site in self._sites}
        errors, settled = self._errors(values)
        details = {site.name: self._detail(site.name) for site in self._sites}
        return Scores(self.name, values, self._samples, errors, settled, details)

    def _entropy(self, name: str) -> float:
        if self.options.pooling == "batch":
            return int(self._sums[name].sum()) / int(self._dealt[1].sum()) / _PARTS_OF_A_BIT
        on, off = self._on[name].sum(0), self._off[name].sum(0)
        return float(self._mean(binary_entropy(on, off)))

    def _mean(self, bits: Tensor) -> Tensor:
        """Return the mean over the last dimension, the neurons."""
        if self.options.neurons == "all":
            return bits.mean(-1)
        return bits.sum(-1) / (bits > 0).sum(-1).clamp(min=1)

    def _without(self, name: str) -> Tensor:
        """Return the entropy of a site without each of the groups."""
        batchwise = self.options.pooling == "batch"
        used = self._dealt[int(batchwise)] > 0
        if batchwise:
            sums, batches = self._sums[name][used], self._dealt[1][used]
            return leave_one_out(sums).double() / leave_one_out(batches) / _PARTS_OF_A_BIT
        on, off = self._on[name][used], self._off[name][used]
        return self._mean(binary_entropy(leave_one_out(on), leave_one_out(off)))

    def _errors(self, values: dict[str, float]) -> tuple[dict[str, float], bool | None]:
        share = self._samples / self._population if self._population else 0.0
        if share >= 1.0:
            return dict.fromkeys(values, 0.0), True
        without = {name: self._without(name) for name in values}
        errors = {name: standard_error(scores, share) for name, scores in without.items()}
        if any(error is None for error in errors.values()):
            return {}, None
        lowest = min(values, key=values.__getitem__)
        settled = all(
            values[name] - values[lowest]
            > 2.0 * (standard_error(scores - without[lowest], share) or 0.0)
            for name, scores in without.items()
            if name != lowest
        )
        return {name: error for name, error in errors.items() if error is not None}, settled

    def _detail(self, name: str) -> dict[str, Any]:
        on, off = self._on[name].sum(0), self._off[name].sum(0)
        total = int((on + off).sum())
        return {
            "on": float(on.sum()) / max(1, total),
            "always_on": int(((off == 0) & (on > 0)).sum()),
            "always_off": int((on == 0).sum()),
            "channels": on.numel(),
        }


@register_criterion("block_entropy")
class BlockEntropy(Entropy):
    """Scores a block by EASIER's entropy, in bits, averaged over the branch's rectifiers.

    A linearized site counts as 0, for it is always in one state. A block without a rectifier
    (attention) has no entropy and is left out of the scores. One pass, no labels.

    Raises:
        ConfigError: at `attach`, if no removable block has a rectifier.
    """

    place = "block"
    twin = ""

    @override
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        self._branches = {b.name: b.sites for b in block_candidates(network) if b.sites}
        if not self._branches:
            raise ConfigError(
                "no removable block of the network has a rectifier: choose another criterion"
            )
        return self._watch(network)

    @override
    def scores(self) -> Scores:
        by_site = {site.name: self._entropy(site.name) for site in self._sites}
        entropies = {
            name: {site: by_site.get(site, 0.0) for site in sites}
            for name, sites in self._branches.items()
        }
        values = {name: fmean(of_sites.values()) for name, of_sites in entropies.items()}
        details = {name: {"entropies": of_sites} for name, of_sites in entropies.items()}
        return Scores(self.name, values, self._samples, details=details)


def _add_in_turn(sums: Tensor, counts: Tensor, start: int) -> None:
    """Add the rows of `counts` to rows start, start + 1, … of `sums`, going round."""
    if len(counts) == len(sums):
        sums += counts.roll(start, 0) if start else counts
    else:
        rows = (start + torch.arange(len(counts), device=sums.device)) % len(sums)
        sums.index_add_(0, rows, counts)


def leave_one_out(sums: Tensor) -> Tensor:
    """Return the total without each of the groups, from what each adds, `[groups, …]`."""
    return sums.sum(0) - sums


def standard_error(without: Tensor, share: float) -> float | None:
    """Return the standard error of a score, or None where there are too few groups.

    The score is computed without each of the groups, [groups], by a share of all data (the
    jackknife, Efron 1982); the variance shrinks by 1 − share. Data are often in the order of their
    classes; neighbouring samples then are of one class, and neighbouring groups differ by chance
    alone. So their difference gives the error, without what distinguishes the classes.
    """
    groups, pairs = len(without), len(without) // 2
    if groups < _FEWEST:
        return None
    differences = without[: 2 * pairs : 2] - without[1 : 2 * pairs : 2]
    # A score without a group differs from the whole by the group's part over g − 1.
    mean = float(differences.square().mean())
    return math.sqrt(max(0.0, 1.0 - share) * mean * groups / 2) * (groups - 1) / groups
