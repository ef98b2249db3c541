"""SNL (Cho et al., ICML 2022) by sites or channels: fewer rectifier evaluations, by learned gates.

Each rectifier r gets a gate α, from 1: α·r(z) + (1 − α)·l(z), where l is the line fitted to it.
Training adds the penalty κ·Σ n·|α| / mean n, with n the evaluations that a gate stands for, and κ
grows while their number does not fall. At the budget gates become 0 or 1, and the network is
fine-tuned. As published a gate is a pixel's, n is 1, l the identity, and gates are not clamped;
pixels fix the size of images, and what is linear here and there is not faster anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from shoal import options
from shoal.options import above, at_least, find_recipe, one_of, option
from shoal.search.gates import GateSearch
from shoal.search.method import Method, register_method

if TYPE_CHECKING:
    from shoal.search.lab import Lab


@register_method("snl")
class SNL(Method):
    """Learns which sites, or channels, keep their rectifier within a budget; all in one step."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """The options of selective linearization."""

        max_relus: int | None = option(
            None,
            "Rectifier evaluations of a sample that may stay; shoal inspect counts those there "
            "are.",
            check=at_least(0),
            default_text="half of them",
        )
        unit: str = option(
            "site",
            "What goes as a whole: a 'site', which can make the network shallower, or a 'channel' "
            "of one, which private inference alone gains from.",
            check=one_of("site", "channel"),
        )
        how: str = option(
            "line",
            "What takes a rectifier's place: the 'line' fitted to it, trained on from there, or "
            "the 'identity' (published).",
            check=one_of("line", "identity"),
        )
        search_epochs: int | None = option(
            None,
            "Epochs of training with gates at most (published: 2000). Where the budget is not "
            "reached by then, the smallest gates go until it is.",
            check=at_least(1),
            default_text="as many as epochs",
        )
        search_recipe: str | None = option(
            None, "Recipe of that training, by its name.", default_text="the run's recipe"
        )
        kappa: float = option(1e-5, "Weight κ of the penalty at first.", check=above(0))
        kappa_growth: float | None = option(
            None,
            "Factor of κ after an epoch without a new low in evaluations (published: 1.1). By "
            "default 1.1, or what lets κ pass 1 halfway if that is more.",
            check=at_least(1),
            default_text="by the length of the search",
        )
        kappa_wait: int | None = option(
            None,
            "Epochs before κ may grow (published: 5).",
            unit="epochs",
            check=at_least(0),
            default_text="5, or a quarter of the search",
        )
        gate_lr: float | None = option(
            None,
            "Learning rate of the gates, by Adam (published: 0.001). By default 0.001, or what "
            "closes a gate in half of the search if that is more.",
            check=above(0),
            default_text="by the length of the search",
        )

        def __post_init__(self) -> None:
            """Raise `ConfigError` for a value that makes no sense, or an unknown recipe."""
            super().__post_init__()
            if self.search_recipe is not None:
                find_recipe(self.search_recipe)

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        if not lab.network.sites_left:
            return "the network has no rectifier to linearize"
        if not (self.options.search_epochs or lab.options.epochs):
            return "snl learns which rectifiers go: raise epochs, or give search_epochs"
        return ""

    @override
    def step(self, lab: Lab) -> bool:
        counts, asked = lab.evaluations(), self.options.max_relus
        before = sum(counts.values())
        most = sum(lab.evaluations(lab.base).values()) // 2 if asked is None else asked
        if before <= most or lab.number > 1:
            return lab.done(f"{before:,} rectifier evaluations are left, of {most:,} asked for")
        lines = lab.lines(list(counts)) if self.options.how == "line" else {}
        by_channel = self.options.unit == "channel"
        lab.replace(list(counts), lambda site: lab.blend(site, lines.get(site.name), by_channel))
        opened = self._search(lab, counts, most)
        gone = [name for name, gates in opened.items() if not any(gates)]
        gone = gone[: lab.at_most(len(gone))]
        mixed = [n for n, gates in opened.items() if any(gates) and not all(gates)]
        lab.linearize(gone, self.options.how, lab.learned_lines())
        lab.replace(mixed, lambda site: lab.by_channel(site, opened[site.name]))
        lab.replace([name for name in counts if name not in (*gone, *mixed)], lab.blended)
        left = sum(lab.evaluations().values())
        lab.note(f"{left:,} of {before:,} rectifier evaluations left, {most:,} asked for")
        lab.train()
        return True

    def _search(self, lab: Lab, counts: Mapping[str, int], most: int) -> dict[str, list[bool]]:
        """Train with gates until the budget is met; returns which of them stay open, by site."""
        chosen, epochs = self.options, self.options.search_epochs or lab.options.epochs
        search = GateSearch(
            lab,
            counts,
            most,
            kappa=chosen.kappa,
            growth=chosen.kappa_growth or max(1.1, chosen.kappa ** (-2.0 / epochs)),
            wait=min(5, epochs // 4) if chosen.kappa_wait is None else chosen.kappa_wait,
            lr=chosen.gate_lr or max(1e-3, 2.0 / lab.steps_of(epochs)),
        )
        lab.train(epochs, recipe=chosen.search_recipe, **search.hooks())
        if not search.met:
            lab.note("the search ended above the budget: the smallest gates go until it is met")
        return search.opened(lab.network)
