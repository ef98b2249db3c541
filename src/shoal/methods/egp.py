"""EGP (Liao et al., ICCVW 2023): prune weights, most where a rectifier's entropy is low.

After each round the network trains again. A rectifier that is always in one state (entropy 0)
becomes the line that equals it. NEPENTHE (TMLR 2026): `zeros="exclude", pooling="all"`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from shoal import options
from shoal.options import at_least, between, one_of, option
from shoal.search.method import Method, register_method

if TYPE_CHECKING:
    from shoal.importance import Scores
    from shoal.search.lab import Lab


@register_method("egp")
class EGP(Method):
    """Each step prunes half of the weights left before rectifiers, by entropy-guided budgets."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """The options of EGP."""

        rounds: int = option(9, "Rounds of pruning at most.", check=at_least(1))
        share: float = option(
            0.5, "Share ζ of the weights left that a round prunes.", check=between(0, 1, ends="()")
        )
        cap: float = option(
            1.0, "Largest share of a layer to prune in a round.", check=between(0, 1, ends="(]")
        )
        protect: tuple[str, ...] = option(
            (), "Sites whose layers are never pruned.", default_text="none"
        )
        zeros: str = option(
            "off", "The state of z = 0 ('exclude': in none).", check=one_of("off", "exclude", "on")
        )
        pooling: str = option(
            "batch", "Mean entropy of batches, or of 'all' data.", check=one_of("batch", "all")
        )
        neurons: str = option(
            "mixed", "Mean over neurons in both states, or 'all'.", check=one_of("mixed", "all")
        )
        samples: int | None = option(
            None, "Score on this many training samples.", check=at_least(1), default_text="all"
        )

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        for name in self.options.protect:
            lab.network.site(name)  # raises if there is none
        return "" if self._layers(lab) else "no rectifier follows a layer with weights"

    @override
    def step(self, lab: Lab) -> bool:
        if any(note.startswith("collapsed") for note in lab.history[-1].notes):
            return lab.done("the network collapsed: it predicts one class")
        if lab.number > self.options.rounds or not lab.network.sites_left:
            return lab.done("all rounds are done")
        scores = self._score(lab)
        if not self._prune(lab, scores):
            return lab.done("no weights are left to prune before a rectifier that works")
        lab.train(after_step=self.keeps(lab))
        linear = [name for name, entropy in self._score(lab, lines=True).items() if entropy == 0.0]
        lab.linearize(linear[: lab.at_most(len(linear))], "line")
        lab.scores = scores
        if lab.once("collapsed", lab.predicts_one_class, together=True):
            lab.note("collapsed: all validation samples are given one class; try cap or protect")
        return True

    @override
    def keeps(self, lab: Lab) -> Any:
        """Return what keeps pruned weights at zero while the network trains."""
        weights = {f"{name}.weight" for name in lab.network.plan.names("prune")}
        parameters = dict(lab.network.named_parameters(remove_duplicate=False))
        masks = {name: parameters[name] != 0 for name in weights & parameters.keys()}  # unmerged

        def keep_pruned(network: Any) -> None:
            for name, mask in masks.items():
                network.get_parameter(name).data.mul_(mask)

        return keep_pruned

    def _score(self, lab: Lab, lines: bool = False) -> Scores:
        chosen = self.options
        criterion = f"zeros={chosen.zeros}&pooling={chosen.pooling}&neurons={chosen.neurons}"
        return lab.score(f"entropy?{criterion}", samples=chosen.samples, fit_lines=lines)

    def _layers(self, lab: Lab) -> dict[str, str]:
        """Return the layer before each rectifier that still works, by its site."""
        before = {s.name: lab.layer_before(s.name) or "" for s in lab.network.sites}
        ids = {v: id(lab.network.get_parameter(f"{v}.weight")) for v in before.values() if v}
        first = {key: layer for layer, key in reversed(ids.items())}  # of those that share a weight
        spared = {ids.get(before[name]) for name in self.options.protect}
        left = ((s.name, ids.get(before[s.name])) for s in lab.network.sites if not s.linearized)
        return {name: first[key] for name, key in left if key and key not in spared}

    def _prune(self, lab: Lab, scores: Scores) -> bool:
        """Set the smallest weights to zero; returns whether there were any.

        What weighs before several rectifiers counts once, with their highest entropy.
        """
        entropies: dict[str, float] = {}
        for site, layer in self._layers(lab).items():
            entropies[layer] = max(entropies.get(layer, 0.0), scores.get(site, 0.0))
        weights = {k: lab.network.get_parameter(f"{k}.weight").data for k in entropies}
        left = {k: int((w != 0).sum()) for k, w in weights.items()}
        live = {k: n for k, n in left.items() if n and entropies[k] > 0.0}
        sizes = {k: float(weights[k].abs().sum()) / n for k, n in live.items()}
        counts = budgets({k: entropies[k] for k in live}, sizes, live, self.options.share)
        lost = {k: n for k, n in whole(counts, live, self.options.cap).items() if n}
        for layer, count in lost.items():
            flat = weights[layer].flatten()
            magnitudes = flat.abs().masked_fill(flat == 0, math.inf)
            flat[magnitudes.argsort(stable=True)[:count]] = 0.0
            weights[layer].copy_(flat.view_as(weights[layer]))
        lab.network.plan.record("prune", tuple(lost))
        lab.mark("prune", tuple(lost), scores)
        return bool(lost)


def budgets(
    entropies: Mapping[str, float],
    sizes: Mapping[str, float],
    left: Mapping[str, int],
    share: float,
) -> dict[str, float]:
    """Return how many weights each layer is to lose, before rounding (EGP's budget rule).

    By the irrelevance I = H·mean|w| and R = ΣI / I a layer gets the share softmax(R − max R) of
    the budget. One that has fewer weights loses all; what remains is shared out again.

    `entropies` are the H, all above 0; `sizes` the mean |w| over the weights that are `left`;
    `share` of all weights left is the budget.
    """
    found: dict[str, float] = {}
    rest = {name: entropies[name] * sizes[name] for name in entropies}
    budget = share * sum(left.values())
    while rest:
        ratios = relevances(rest)
        shares = {name: math.exp(r - max(ratios.values())) for name, r in ratios.items()}
        wanted = {name: budget * s / sum(shares.values()) for name, s in shares.items()}
        short = {name: float(left[name]) for name in rest if left[name] < wanted[name]}
        found |= short or wanted
        budget -= sum(short.values())
        rest = {name: value for name, value in rest.items() if short and name not in short}
    return {name: found[name] for name in entropies}


def relevances(irrelevances: Mapping[str, float]) -> dict[str, float]:
    """Return R = ΣI / I of each layer, from the irrelevances I, all above 0."""
    total = sum(irrelevances.values())
    return {name: total / irrelevance for name, irrelevance in irrelevances.items()}


def whole(counts: Mapping[str, float], left: Mapping[str, int], cap: float) -> dict[str, int]:
    """Round down what each layer is to lose, to at most the share `cap` of its weights `left`."""
    return {name: math.floor(min(n, cap * left[name])) for name, n in counts.items()}
