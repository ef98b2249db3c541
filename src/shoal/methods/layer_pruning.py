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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from shoal import options
from shoal.errors import ConfigError
from shoal.importance import Criterion, stages
from shoal.importance.candidates import block_candidates
from shoal.importance.criteria import ALL
from shoal.network import Network
from shoal.options import at_least, option
from shoal.search.legacy import Proposal, Search, Situation
from shoal.search.method import register_method
from shoal.search.scoring import chosen_criterion, score_candidates, unsettled_note, worth_removing
from shoal.surgery import drop_

__all__ = ["LayerPruning"]


@register_method("layer_pruning")
class LayerPruning:
    """Scores all removable blocks and drops the lowest.

    Published code keeps the first block and two blocks in each stage: `keep_first=True,
    keep_per_stage=2`. By default whatever has an identity shortcut can go.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """The options of layer pruning."""

        criterion: str = option(
            "cka",
            "What decides which block goes: the one with the lowest score does. 'cka', "
            "'block_influence', 'lesion', 'l1', 'taylor', 'snip', 'grasp', or any other criterion "
            "of blocks.",
        )
        per_step: int = option(
            1,
            "Blocks to remove before each fine-tuning. More is quicker and coarser.",
            check=at_least(1),
        )
        samples: int | None = option(
            None,
            "Score on this many training samples only. Quicker on large data; a note says when the "
            "choice is then not certain.",
            check=at_least(1),
            default_text="all",
        )
        keep_first: bool = option(False, "Never drop the first block.")
        keep_per_stage: int = option(
            0,
            "How many blocks must stay in each stage, the removable ones and the others.",
            check=at_least(0),
        )
        per_latency: bool = option(
            False,
            "Divide importance by the milliseconds that the removal was measured to save, so that "
            "what is slow goes sooner.",
        )

    unit: ClassVar[str] = "blocks"
    reads: ClassVar[frozenset[str]] = frozenset({"keep_first", "keep_per_stage", "per_latency"})
    defaults: ClassVar[Mapping[str, Any]] = {"criterion": "cka"}

    def __init__(self, search: Search) -> None:
        self.search = search
        self._criterion(1)  # raises for one that makes no sense

    def candidates(self, network: Network) -> list[str]:
        """Return the blocks that can be dropped without falling below the floors."""
        kept = _Floors(network, self.search)
        return [b.name for b in network.blocks if b.removable and kept.allow(b.name)]

    def nothing_to_remove(self, network: Network) -> str:
        """Return why there is no candidate in a network that was just captured."""
        try:
            block_candidates(network)
        except ConfigError as error:
            return str(error)
        return "keep_first and keep_per_stage keep every block that could be removed: lower them"

    def propose(
        self, network: Network, data: Iterable[Any], count: int, situation: Situation
    ) -> Proposal | None:
        """Choose up to `count` blocks with the lowest scores, within the floors.

        None where none is left whose removal saves time, if importance is divided by that.

        Raises:
            ConfigError: the criterion scores none of the candidates.
            TrainingError: the network computes NaN.
        """
        criterion = self._criterion(count)
        scores = score_candidates(criterion, network, data, self.search, situation)
        floors = _Floors(network, self.search)
        chosen: list[str] = []
        worthy = worth_removing(scores)
        if scores and not worthy:
            return None
        for name in worthy:
            if len(chosen) < count and floors.allow(name):
                floors.drop(name)
                chosen.append(name)
        if not chosen:
            raise ConfigError(
                f"the criterion '{self.search.criterion}' scores no block that can be dropped: "
                "choose another one"
            )
        names = tuple(chosen)
        notes = unsettled_note(scores, self.search)
        return Proposal("drop", names, scores, lambda target: drop_(target, names), notes)

    def _criterion(self, count: int) -> Criterion:
        floors = self.search.keep_first or self.search.keep_per_stage
        return chosen_criterion(self.search, "block", wanted=ALL if floors else count)


class _Floors:
    """How many blocks must stay, and where."""

    def __init__(self, network: Network, search: Search) -> None:
        self._stage = {name: stage.index for stage in stages(network) for name in stage.blocks}
        self._left = Counter(self._stage.values())
        self._least = search.keep_per_stage
        first = next(iter(network.blocks), None)
        self._first = first.name if first is not None and search.keep_first else None

    def allow(self, name: str) -> bool:
        """Whether one more block, this one, may go."""
        return name != self._first and self._left[self._stage[name]] > self._least

    def drop(self, name: str) -> None:
        """Count a block as gone."""
        self._left[self._stage[name]] -= 1
