"""EASIER with the entropy in the loss: the paper's future work (Quétu et al. 2024, section 4.4).

A smooth stand-in for the entropy of the sites that are left pushes each towards one state while the
network trains. Steps, epochs and choices are EASIER's, so both compare at equal training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from shoal.methods.easier import Easier
from shoal.options import above, at_least, option
from shoal.search.method import register_method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from shoal.search.lab import Lab


@register_method("differentiable")
class Differentiable(Easier):
    """Removes rectifiers as EASIER does, and trains those that are left to be in one state."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Easier.Options):
        """EASIER's options, and those of the penalty."""

        entropy_weight: float = option(
            1.0,
            "Weight of the mean entropy of the sites, in bits, that is added to the loss. 0 is "
            "EASIER itself.",
            check=at_least(0),
        )
        tau: float = option(
            0.3,
            "How wide the smooth step from OFF to ON is, in deviations of a site's input. Less is "
            "nearer to the entropy, with a gradient for fewer entries.",
            check=above(0),
        )
        push: int | None = option(
            None,
            "Push only this many sites, those with the lowest scores, which go next.",
            check=at_least(1),
            default_text="all",
        )

    @override
    def train(self, lab: Lab) -> None:
        weight = self.options.entropy_weight
        left = {site.name for site in lab.network.sites if site.linearized is None}
        ranked = [] if lab.scores is None else lab.scores.lowest(len(lab.scores))
        sites = [name for name in ranked if name in left][: self.options.push]
        if weight == 0 or not sites:
            super().train(lab)
            return
        mean = lab.site_entropy(self.options.tau)

        def penalty(network: Any, values: Mapping[str, Any]) -> Tensor:
            return weight * mean(network, values)

        lab.train(penalty=penalty, at=sites)
