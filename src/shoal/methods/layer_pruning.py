"""Residual layer pruning: drop the least important blocks, fine-tune, again or once.

Jordao et al. 2023 ("When Layers Play the Lottery, all Tickets Win at Initialization"):
Algorithm 1 scores trained weights, removes, rewinds and trains on; Algorithm 2 scores an untrained
network and trains once. Pons et al. 2024 score, remove one block and fine-tune, again and again.
All are options of one loop:

- iterative: `per_step=1`; one-shot: `per_step=p, remove=p`.
- rewinding: `rewind=i`, or `rewind_from=` a file.
- at initialization: an untrained model, `rewind=0`, `score_on="rewound"`, and a criterion such as
  "grasp?statistics=batch"; `dense_epochs` then trains the network it is compared with.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from shoal.errors import ConfigError
from shoal.options import at_least, option
from shoal.search.method import (
    Method,
    Progress,
    ScoreOptions,
    none_worthy,
    register_method,
)

if TYPE_CHECKING:
    from shoal.network import Network
    from shoal.search.lab import Lab


@register_method("layer_pruning")
class LayerPruning(Method):
    """Scores all removable blocks and drops the lowest.

    Published code keeps the first block and two blocks in each stage: `keep_first=True,
    keep_per_stage=2`. By default whatever has an identity shortcut can go.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(ScoreOptions):
        """The options of layer pruning."""

        criterion: str = option(
            "cka",
            "What decides which block goes: the one with the lowest score does. 'cka', "
            "'block_influence', 'lesion', 'l1', 'taylor', 'snip', 'grasp', or any other criterion "
            "of blocks.",
        )
        keep_first: bool = option(False, "Never drop the first block.")
        keep_per_stage: int = option(
            0,
            "How many blocks must stay in each stage, the removable ones and the others.",
            check=at_least(0),
        )

    scores: ClassVar[str] = "block"

    @override
    def progress(self, lab: Lab) -> Progress:
        total = len(self._candidates(lab, lab.base))
        return Progress(lab.dropped, total, "blocks", per_step=self.options.per_step)

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        blocks = lab.network.blocks
        if not blocks:
            return "the network has no residual block: choose a method or a criterion for sites"
        if not any(block.removable for block in blocks):
            return (
                f"none of the network's {len(blocks)} residual blocks can be removed; "
                f"'{blocks[0].name}': {blocks[0].reason}"
            )
        if not self._candidates(lab, lab.network):
            return "keep_first and keep_per_stage keep every removable block: lower them"
        return ""

    def _candidates(self, lab: Lab, network: Network) -> list[str]:
        """Return the blocks that can be dropped without falling below the floors."""
        floors = _Floors(lab, network, self.options)
        return [b.name for b in network.blocks if b.removable and floors.allow(b.name)]

    @override
    def step(self, lab: Lab) -> bool:
        chosen = self.options
        if not self._candidates(lab, lab.network):
            return lab.done()
        count = lab.at_most(chosen.per_step)
        scores = lab.score(
            chosen.criterion,
            "block",
            wanted=None if chosen.keep_first or chosen.keep_per_stage else count,
            samples=chosen.samples,
            per_latency=chosen.per_latency,
        )
        worthy = scores.worth_removing()
        if scores and not worthy:
            return lab.done(none_worthy(chosen.per_latency))
        floors = _Floors(lab, lab.network, chosen)
        names: list[str] = []
        for name in worthy:
            if len(names) < count and floors.allow(name):
                floors.drop(name)
                names.append(name)
        if not names:
            raise ConfigError(
                f"the criterion '{chosen.criterion}' scores no block that can be dropped: choose "
                "another one"
            )
        lab.drop(names)
        lab.train()
        return True


class _Floors:
    """How many blocks must stay, and where."""

    def __init__(self, lab: Lab, network: Network, options: LayerPruning.Options) -> None:
        stages = lab.stages(network)
        self._stage = {name: stage.index for stage in stages for name in stage.blocks}
        self._left = Counter(self._stage.values())
        self._least = options.keep_per_stage
        first = next(iter(network.blocks), None)
        self._first = first.name if first is not None and options.keep_first else None

    def allow(self, name: str) -> bool:
        return name != self._first and self._left[self._stage[name]] > self._least

    def drop(self, name: str) -> None:
        self._left[self._stage[name]] -= 1
