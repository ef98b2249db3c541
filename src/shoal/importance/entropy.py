"""The entropy of rectifier states (Quétu et al. 2024, "The Simpler The Better", eq. 3 to 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.importance.scores import Scores
from shoal.importance.states import count_states
from shoal.network import Network, Site

__all__ = ["Entropy", "binary_entropy"]

# Batches are dealt to this many groups; leaving out one group at a time gives standard errors.
_GROUPS = 32


def binary_entropy(on: Tensor, off: Tensor) -> Tensor:
    """Return each neuron's entropy in bits, float64 (eq. 4 to 6).

    Args:
        on: how often the neuron was ON, any shape.
        off: how often it was OFF.

    Returns:
        H = −Σ p log2 p over p(ON) = on / (on + off) and p(OFF) = 1 − p(ON); 0 for a neuron that
        was never in either state.
    """
    total = (on + off).double()
    p = torch.stack([on.double(), off.double()]) / total.clamp(min=1.0)
    return -(torch.xlogy(p, p).sum(0)) / torch.log(torch.tensor(2.0, dtype=torch.float64))


class Entropy:
    """Scores each site by the mean entropy of its neurons' ON/OFF states.

    A neuron is a channel; its counts run over samples and positions ("additional sum and average
    over the entire feature map"). A site whose neurons always are in one state acts linearly and
    scores 0. The state is the sign of the rectifier's input, for every kind of rectifier.

    Args:
        zeros: what z = 0 counts as: "exclude" (eq. 3, the paper), "on" (the published code) or
            "off".
        pooling: "all" counts over the whole data set (the paper); "batch" averages the entropies
            of single batches (the published code), which is lower, the more so the smaller the
            batch.
    """

    unit = "site"

    def __init__(self, *, zeros: str = "exclude", pooling: str = "all") -> None:
        _check("zeros", zeros, ("exclude", "on", "off"))
        _check("pooling", pooling, ("all", "batch"))
        self.zeros = zeros
        self.pooling = pooling
        self._sites: list[Site] = []
        self._on: dict[str, Tensor] = {}  # [groups, channels]
        self._off: dict[str, Tensor] = {}
        self._sum: dict[str, Tensor] = {}  # [groups]: entropies of batches, for pooling="batch"
        self._batches = torch.zeros(_GROUPS, dtype=torch.int64)
        self._group = 0
        self._samples = 0
        self._everything = True

    # ------------------------------------------------------------------ observing

    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        """Watch the input of every site that still has its rectifier."""
        self._sites = [site for site in network.sites if site.linearized is None]
        if not self._sites:
            raise ConfigError("the network has no rectifier left to score")
        return [
            network.get_submodule(site.name).register_forward_pre_hook(self._counter(site))
            for site in self._sites
        ]

    def begin(self, index: int, size: int) -> None:
        """Choose the group that the next batch belongs to."""
        self._group = index % _GROUPS
        self._batches[self._group] += 1

    def _counter(self, site: Site) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            z = inputs[0]
            on, off = count_states(z, site.channel_dim)
            if self.zeros != "exclude":
                rest = z.numel() // on.numel() - on - off
                on, off = (on + rest, off) if self.zeros == "on" else (on, off + rest)
            if site.name not in self._on:
                self._on[site.name] = on.new_zeros((_GROUPS, on.numel()))
                self._off[site.name] = torch.zeros_like(self._on[site.name])
                self._sum[site.name] = torch.zeros(_GROUPS, dtype=torch.float64, device=on.device)
            self._on[site.name][self._group] += on
            self._off[site.name][self._group] += off
            if self.pooling == "batch":
                self._sum[site.name][self._group] += binary_entropy(on, off).mean()

        return count

    def finish(self, samples: int, everything: bool) -> None:
        """Sum the counts of all processes."""
        self._samples, self._everything = samples, everything
        sum_across(self._batches)
        for site in self._sites:
            if site.name not in self._on:
                # This process had no batch at all; the others know the number of channels.
                raise ConfigError("fewer batches than processes: use fewer processes")
            for counts in (self._on, self._off, self._sum):
                counts[site.name] = sum_across(counts[site.name].cpu())
            if bool((self._on[site.name] < 0).any() or (self._off[site.name] < 0).any()):
                raise TrainingError(
                    f"the input of site '{site.name}' is NaN: the network's weights or its data "
                    "are broken; check them before scoring"
                )

    # ------------------------------------------------------------------ the result

    def scores(self) -> Scores:
        """Return the entropies in bits (eq. 7), with standard errors from a group jackknife."""
        values: dict[str, float] = {}
        jackknife: dict[str, Tensor] = {}
        details: dict[str, dict[str, Any]] = {}
        for site in self._sites:
            name = site.name
            values[name] = float(self._layer_entropy(name, torch.ones(_GROUPS, dtype=torch.bool)))
            jackknife[name] = self._leave_one_out(name)
            details[name] = self._detail(name)
        errors, settled = self._errors(values, jackknife)
        return Scores("entropy", values, self._samples, errors, settled, details)

    def _layer_entropy(self, name: str, groups: Tensor) -> Tensor:
        if self.pooling == "batch":
            return self._sum[name][groups].sum() / self._batches[groups].sum()
        on, off = self._on[name][groups].sum(0), self._off[name][groups].sum(0)
        return binary_entropy(on, off).mean()

    def _leave_one_out(self, name: str) -> Tensor:
        """Return the score without each of the groups that have data, shape [used groups]."""
        used = self._batches > 0
        scores = []
        for group in used.nonzero().flatten().tolist():
            rest = used.clone()
            rest[group] = False
            if bool(rest.any()):
                scores.append(self._layer_entropy(name, rest))
        return torch.stack(scores) if scores else torch.zeros(0, dtype=torch.float64)

    def _errors(
        self, values: dict[str, float], jackknife: dict[str, Tensor]
    ) -> tuple[dict[str, float], bool | None]:
        if self._everything:
            return dict.fromkeys(values, 0.0), True
        if any(len(scores) < 2 for scores in jackknife.values()):
            return {}, None
        errors = {name: _jackknife_error(scores) for name, scores in jackknife.items()}
        if len(values) == 1:
            return errors, True
        first, second = sorted(values, key=values.__getitem__)[:2]
        margin = _jackknife_error(jackknife[second] - jackknife[first])
        return errors, values[second] - values[first] > 2.0 * margin

    def _detail(self, name: str) -> dict[str, Any]:
        on, off = self._on[name].sum(0), self._off[name].sum(0)
        total = int((on + off).sum())
        return {
            "on": float(on.sum()) / max(1, total),
            "always_on": int(((off == 0) & (on > 0)).sum()),
            "always_off": int((on == 0).sum()),
            "channels": on.numel(),
        }


def _jackknife_error(leave_one_out: Tensor) -> float:
    """Return the standard error (Efron 1982): sqrt((g − 1)/g · Σ (θ_i − mean θ)²)."""
    g = len(leave_one_out)
    spread = (leave_one_out - leave_one_out.mean()).square().sum()
    return float((spread * (g - 1) / g).sqrt())


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is '{value}': choose one of {', '.join(choices)}")
