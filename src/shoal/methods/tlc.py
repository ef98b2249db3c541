"""TLC (Liao et al., AAAI 2025): linearize the rectifiers whose loss misses them least.

What takes a rectifier's place follows from the batch norm before it, without data. At each step
every rectifier that is left is tried on one calibration set; the cheapest go together as long as
the loss stays at or below what it was, or else the single cheapest. Then the network trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from shoal import options
from shoal.options import at_least, one_of, option
from shoal.search.method import Method, register_method

if TYPE_CHECKING:
    from shoal.importance import Scores
    from shoal.search.lab import Lab
    from shoal.surgery import FittedLine


@register_method("tlc")
class TLC(Method):
    """Linearizes, at each step, all rectifiers that together do not raise the loss."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """The options of TLC."""

        replace: str = option(
            "line",
            "What takes a rectifier's place: 'line', for each channel the least-squares line of a "
            "Gaussian with the batch norm's mean and deviation; 'mask', as published: channels "
            "whose mean is not above 0 are switched off for good, the others pass as they are.",
            check=one_of("line", "mask"),
        )
        inputs: str = option(
            "norm",
            "Where mean and deviation come from: 'norm' takes the rectifiers that follow a batch "
            "norm directly, and no others; 'data' measures those of the others.",
            check=one_of("norm", "data"),
        )
        samples: int = option(
            1000, "How many training samples the calibration set has.", check=at_least(1)
        )
        overshoot: bool = option(
            False,
            "Take the first set that raises the loss, as the published code does, and not the last "
            "that does not.",
        )
        keep: int = option(
            1, "Stop when this many rectifiers are left (published: 1).", check=at_least(0)
        )
        floor: float | None = option(
            None,
            "Stop when the validation quality is below this (published: 20 %).",
            unit="points",
            default_text="none",
        )
        rounds: int = option(
            40, "Steps at most (published: 40, of MobileNetV2 20).", check=at_least(1)
        )

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        if not lab.network.sites_left:
            return "the network has no rectifier to linearize: choose method layer_pruning or shoal"
        if self.options.inputs == "norm" and not lab.imply_lines():
            return "no rectifier follows a batch norm directly: use inputs='data'"
        return ""

    @override
    def step(self, lab: Lab) -> bool:
        chosen, quality = self.options, lab.history[-1].metrics.top1_val
        if lab.number > chosen.rounds:
            return lab.done("all rounds are done")
        if chosen.floor is not None and quality < chosen.floor:
            return lab.done(f"the quality fell below {chosen.floor:g} points")
        spare = lab.network.sites_left - chosen.keep
        measured = chosen.samples if chosen.inputs == "data" else 0
        lines = lab.imply_lines(chosen.replace, measured) if spare > 0 else {}
        if not lines:
            return lab.done()
        scores = lab.score_lines(lines, chosen.samples)
        order = scores.worth_removing()[: lab.at_most(min(spare, len(lines)))]
        if not order:
            return lab.done("without any further rectifier the loss is not finite")
        names = self._cheapest(lab, {name: lines[name] for name in order}, scores)
        lab.linearize(names, lines=lines)
        lab.train(after_step=self.keeps(lab))
        return True

    def _cheapest(self, lab: Lab, lines: Mapping[str, FittedLine], scores: Scores) -> list[str]:
        """Return the longest beginning of `lines` that does not raise the loss, at least one."""
        order, count, samples = list(lines), 1, self.options.samples
        while count < len(order) and scores[order[0]] <= 0:
            wider = {name: lines[name] for name in order[: count + 1]}
            holds = lab.loss(wider, samples) <= lab.loss(samples=samples)
            count += holds or self.options.overshoot
            if not holds:
                break
        return order[:count]

    @override
    def keeps(self, lab: Lab) -> Any:
        """Return what keeps channels off while the network trains; None where none are."""
        network = lab.network
        if self.options.replace != "mask":
            return None
        sites = (f"{site.name}.slope" for site in network.sites if site.linearized == "line")
        off = {name: network.get_parameter(name) == 0 for name in sites}
        off |= {name.removesuffix("slope") + "intercept": where for name, where in off.items()}

        def keep_off(trained: Any) -> None:
            for name, where in off.items():
                trained.get_parameter(name).data.masked_fill_(where, 0.0)

        return keep_off if off else None
