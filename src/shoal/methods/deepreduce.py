"""DeepReDuce (Jha et al., ICML 2021): rectifiers go by stages, then every second of the rest.

Culling: the network with the rectifiers of one stage alone is trained, for each stage in turn; the
least critical stage then loses all of its own. Thinning: of the stages left every second site goes,
the first, third, … or the others, whichever trains better. Left out is reshaping, which gives the
network fewer channels or images of lower resolution. What the paper takes for a stage's criticality
is not verified; see `criticality`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from shoal import options
from shoal.options import at_least, one_of, option
from shoal.search.method import Method, register_method

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.measure import SiteStage
    from shoal.search.lab import Lab


_FAILED = -1e6  # points of a copy that cannot be trained: no quality is below


@register_method("deepreduce")
class DeepReduce(Method):
    """Culls the least critical stages, one at each step, then thins the others in one step."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """The options of DeepReDuce."""

        cull: int = option(1, "Stages that lose all of their rectifiers.", check=at_least(0))
        thin: bool = option(True, "Then linearize every second site of the stages left.")
        trial_epochs: int | None = option(
            None,
            "Epochs that each trial is trained for.",
            check=at_least(0),
            default_text="as many as epochs",
        )
        count_weight: float = option(
            0.07,
            "Criticality is the quality over the evaluations to this power: at 0 quality alone "
            "decides, at 1 what an evaluation brings.",
            check=at_least(0),
        )
        how: str = option(
            "line",
            "What takes a rectifier's place: the 'line' fitted to it, or the 'identity' "
            "(published).",
            check=one_of("line", "identity"),
        )
        distilled: bool = option(
            True,
            "Learn from the dense network, half and half, also where the recipe does not distil.",
        )

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        stages = lab.site_stages()
        if len([stage for stage in stages if stage.evaluations]) > 1:
            return ""
        if not lab.network.sites_left:
            return "the network has no rectifier to linearize"
        if self.options.thin and _thinned(stages, 0):
            return ""
        return "the network's rectifiers are of one stage, and it cannot be thinned: choose snl"

    @override
    def step(self, lab: Lab) -> bool:
        before = {stage.positions: len(stage.evaluations) for stage in lab.site_stages(lab.base)}
        stages = [stage for stage in lab.site_stages() if stage.evaluations]
        culled = sum(count > 0 for count in before.values()) - len(stages)
        if culled < self.options.cull and len(stages) > 1:
            names = self._cull(lab, stages)
        elif self.options.thin and all(len(s.evaluations) == before[s.positions] for s in stages):
            names = self._thin(lab, stages)
        else:
            names = []
        if not names:
            return lab.done("the stages are culled and thinned, as asked")
        lab.linearize(names[: lab.at_most(len(names))], self.options.how)
        lab.train(recipe=self._recipe(lab))
        return True

    def _cull(self, lab: Lab, stages: Sequence[SiteStage]) -> list[str]:
        """Return the sites of the least critical stage; criticality is measured once."""
        known = next((step.scores for step in lab.history if step.scores), None)
        if known is None:
            sites = [(stage, name) for stage in stages for name in stage.evaluations]
            keep = {s.title: [n for own, n in sites if own is not s] for s in stages}
            found = self._qualities(lab, {f"only {title}": names for title, names in keep.items()})
            worth = {
                s.title: criticality(found[f"only {s.title}"], s.total, self.options.count_weight)
                for s in stages
            }
            known = {name: worth[stage.title] for stage, name in sites}
            lab.rank("criticality", known)
            told = ", ".join(f"{title} {value:.4g}" for title, value in worth.items())
            lab.note(
                f"criticality of stages: {told}; it is quality / evaluations^"
                f"{self.options.count_weight:g} of the network with that stage's rectifiers alone "
                "(the published formula is not verified)"
            )
        lowest = min(stages, key=lambda stage: known[next(iter(stage.evaluations))])
        return list(lowest.evaluations)

    def _thin(self, lab: Lab, stages: Sequence[SiteStage]) -> list[str]:
        """Return every second site of each stage: the half whose copy trains better."""
        halves = {f"without every second from {i + 1}": _thinned(stages, i) for i in (0, 1)}
        if not any(halves.values()):
            return []
        found = self._qualities(lab, halves)
        best = max(halves, key=lambda name: found[name])
        lab.note(f"thinned {best}: {', '.join(f'{k} {v:.4g}' for k, v in found.items())}")
        return halves[best]

    def _qualities(self, lab: Lab, tries: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Return the quality of copies without these rectifiers, trained."""
        chosen = self.options
        epochs = lab.options.epochs if chosen.trial_epochs is None else chosen.trial_epochs
        names = list(lab.evaluations())
        lines = lab.lines(names) if chosen.how == "line" else {}
        found = {}
        for name, sites in tries.items():
            change = lab.linearizing(sites, chosen.how, lines)
            trial = lab.trial(name, change, epochs=epochs, recipe=self._recipe(lab))
            found[name] = _FAILED if trial.failed else trial.quality
            trial.forget()
        return found

    def _recipe(self, lab: Lab) -> Any:
        return {"distill": 0.5} if self.options.distilled and lab.recipe.distill == 0 else None


def criticality(quality: float, evaluations: int, weight: float) -> float:
    """Return how critical a stage is: quality / evaluations^weight.

    The quality, in points, is that of the network with this stage's rectifiers alone. The paper
    weighs accuracy against the number of rectifiers; by what formula is not verified. A quality
    below 0, as R² can be, is multiplied instead: more evaluations always make a stage less
    critical.
    """
    size = evaluations**weight
    return quality / size if quality > 0 else quality * size


def _thinned(stages: Sequence[SiteStage], first: int) -> list[str]:
    """Return every second site of stages that have several, from the first or the second on."""
    return [n for s in stages if len(s.evaluations) > 1 for n in list(s.evaluations)[first::2]]
