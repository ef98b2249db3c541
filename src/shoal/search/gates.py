"""Gates on rectifiers, 1 where one stays and 0 where its line does, learned within a budget.

A gate is one minus the slope of a `Blend`. Nothing here imports PyTorch, like the methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.search.lab import Lab

OPEN = 0.01
"""A gate at or below this is shut."""

Gates = Mapping[str, list[float]]
"""The gates of each site, or their costs in rectifier evaluations, by the site's name."""


class GateSearch:
    """The hooks of a training that shuts gates until at most `most` evaluations are left.

    The penalty is κ·Σ n·|α| / mean n over gates α that stand for n evaluations each. At the first
    step after which few enough are open, the gates become 0 and 1, and the epoch ends with these.

    Args:
        lab: whose network's rectifiers are blends.
        counts: the evaluations of each site.
        most: the budget.
        kappa: κ at first.
        growth: its factor after an epoch without a new low.
        wait: epochs before it may grow.
        lr: the gates' learning rate, by Adam.
    """

    # Many because each is a setting of the published algorithm.
    def __init__(
        self, lab: Lab, counts: Mapping[str, int], most: int, *, kappa: float, growth: float,
        wait: int, lr: float,
    ) -> None:  # fmt: skip
        self._lab = lab
        self._most, self._growth, self._wait, self._lr = most, growth, wait, lr
        self._costs = {name: self._costs_at(name, n) for name, n in counts.items()}
        self._flat = {name: cost.flatten().tolist() for name, cost in self._costs.items()}
        self._mean = sum(map(sum, self._flat.values())) / sum(map(len, self._flat.values()))
        self.memory: dict[str, Any] = {"kappa": kappa, "low": sum(counts.values()), "epoch": 0}

    def hooks(self) -> dict[str, Any]:
        """Return what `Lab.train` takes."""
        return {
            "penalty": self.penalty,
            "groups": self.groups,
            "after_step": self.after_step,
            "after_epoch": self.after_epoch,
            "memory": self.memory,
        }

    @property
    def met(self) -> bool:
        """Whether the budget was met."""
        return "open" in self.memory

    def opened(self, network: Any) -> dict[str, list[bool]]:
        """Return which gates stay open; where the budget was not met, the smallest are shut."""
        found: dict[str, list[bool]] | None = self.memory.get("open")
        return found or within(self._gates(network), self._flat, self._most)

    def groups(self, network: Any) -> list[dict[str, Any]]:
        """Train the slopes by an optimizer of their own."""
        slopes = list(self._lab.slopes(network).values())
        own = {"optimizer": "adam", "weight_decay": 0.0, "constant": True}
        return [{"params": slopes, "lr": self._lr, **own}]

    def penalty(self, network: Any, values: Mapping[str, Any]) -> Tensor:
        """Return κ times the evaluations that are open, in those of a mean gate."""
        slopes = self._lab.slopes(network).items()
        terms = [(self._costs[name] * (1 - slope).abs()).sum() for name, slope in slopes]
        total: Tensor = self.memory["kappa"] / self._mean * sum(terms[1:], terms[0])
        return total

    def after_step(self, network: Any) -> None:
        """Clamp the slopes; once the budget is met, keep them where they were shut or opened."""
        gates = self._gates(network)
        if not self.met and count(gates, self._flat) <= self._most:
            self.memory["open"] = within(gates, self._flat, self._most)
        for name, slope in self._lab.slopes(network).items():
            if self.met:
                shut = [float(not is_open) for is_open in self.memory["open"][name]]
                slope.data.copy_(slope.new_tensor(shut).view_as(slope))
            slope.data.clamp_(0.0, 1.0)

    def after_epoch(self, network: Any) -> bool:
        """Let κ grow, and end the training at the budget."""
        grow(self.memory, count(self._gates(network), self._flat), self._growth, self._wait)
        return self.met

    def _gates(self, network: Any) -> dict[str, list[float]]:
        slopes = self._lab.slopes(network).items()
        return {name: (1 - slope.detach()).flatten().tolist() for name, slope in slopes}

    def _costs_at(self, name: str, evaluations: int) -> Tensor:
        """Return the evaluations that each gate of a site stands for."""
        slope = self._lab.slopes()[name].detach()
        kept = getattr(self._lab.blended(self._lab.network.site(name)), "kept", slope.new_ones(()))
        share = kept.to(slope).expand_as(slope) if slope.dim() else slope.new_ones(())
        return share * (evaluations / share.sum())


def count(gates: Gates, costs: Gates) -> float:
    """Return the evaluations of gates that are open."""
    pairs = [pair for name in gates for pair in zip(gates[name], costs[name], strict=True)]
    return sum(cost for gate, cost in pairs if gate > OPEN)


def within(gates: Gates, costs: Gates, most: float) -> dict[str, list[bool]]:
    """Return which gates stay open when the smallest are shut in turn, until `most` are left."""
    opened = {name: [True] * len(values) for name, values in gates.items()}
    order = [(a, name, i) for name, values in gates.items() for i, a in enumerate(values)]
    left = sum(map(sum, costs.values()))
    for _, name, i in sorted(order, key=lambda entry: entry[0]):
        if left <= most:
            break
        opened[name][i] = False
        left -= costs[name][i]
    return opened


def grow(memory: dict[str, Any], found: float, growth: float, wait: int) -> None:
    """Let κ grow after an epoch, from epoch `wait` on, in which the count was no new low."""
    if found < memory["low"]:
        memory["low"] = found
    elif memory["epoch"] >= wait:
        memory["kappa"] *= growth
    memory["epoch"] += 1
