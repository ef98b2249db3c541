"""LaCoOT (Quétu et al., ICCV 2025): train blocks to change little, then drop them one by one.

One training adds λ times the mean distance between what goes into each block and what comes out.
Then a block goes at each step, without training unless that is asked for, so a single training
gives the networks with one, two, … blocks less.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from shoal.options import DistanceOptions, at_least, one_of, option
from shoal.search.method import Method, Progress, register_method

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from shoal.search.lab import Lab


@register_method("lacoot")
class LaCoOT(Method):
    """Trains once with a penalty on blocks that do much, then drops the least important."""

    @dataclass(frozen=True, kw_only=True)
    class Options(DistanceOptions):
        """The options of LaCoOT."""

        distance_weight: float = option(
            1.0,
            "Weight λ of the penalty (published, for distances that are not relative: 5 for "
            "ResNet-18, 9 for MobileNetV2, 0.1 to 1 for Swin).",
            check=at_least(0),
        )
        rank: str = option(
            "loss",
            "Which block goes: the one without which the 'loss' rises least, or that with the "
            "least 'distance'.",
            check=one_of("loss", "distance"),
        )
        per_step: int = option(1, "Blocks dropped at each step.", check=at_least(1))
        tune_epochs: int = option(
            0, "Epochs of fine-tuning after each drop, without the penalty.", check=at_least(0)
        )
        samples: int | None = option(
            None, "Rank on this many training samples.", check=at_least(1), default_text="all"
        )

    @override
    def progress(self, lab: Lab) -> Progress:
        total = sum(block.removable for block in lab.base.blocks)
        return Progress(lab.dropped, total, "blocks")

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        if any(block.removable for block in lab.network.blocks):
            return ""
        return "the network has no residual block that can be removed: choose a method for sites"

    @override
    def step(self, lab: Lab) -> bool:
        blocks = [block.name for block in lab.network.blocks if block.removable]
        if not blocks:
            return lab.done()
        if lab.number == 1 and lab.options.epochs:
            self._train(lab, blocks)
            return True
        chosen = self.options
        by = "lesion" if chosen.rank == "loss" else f"transport?{self._distance()}"
        scores = lab.score(by, "block", samples=chosen.samples)
        lowest = scores.worth_removing()
        if not lowest:
            return lab.done("without any of the blocks that are left the network computes NaN")
        lab.drop(lowest[: lab.at_most(chosen.per_step)])
        lab.train(chosen.tune_epochs)
        return True

    def _train(self, lab: Lab, blocks: list[str]) -> None:
        weight = self.options.distance_weight
        mean = lab.block_distance(self.options)

        def penalty(network: Any, values: Mapping[str, Any]) -> Tensor:
            return weight * mean(network, values)

        if weight == 0:
            lab.train()
        else:
            lab.train(penalty=penalty, at=blocks)

    def _distance(self) -> str:
        """Return the options of the distance, as a criterion takes them."""
        names = [field.name for field in fields(DistanceOptions)]
        return "&".join(f"{name}={getattr(self.options, name)}".lower() for name in names)
