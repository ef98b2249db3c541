"""Controls: what another method would give if it chose by something that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from shoal import options
from shoal.methods.easier import Easier
from shoal.methods.layer_pruning import LayerPruning
from shoal.options import at_least, one_of, option
from shoal.search.method import Method, Progress

if TYPE_CHECKING:
    from shoal.search.lab import Lab


class Control(Method):
    """Does what EASIER does to rectifiers, or layer pruning to blocks, by a criterion of its own.

    The same steps and the same training: only the choice differs.

    Attributes:
        criterion: what chooses.
    """

    criterion: ClassVar[str]

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """What is removed, and how."""

        place: str = option(
            "site",
            "What is removed: 'site', rectifiers, as method easier does, or 'block', as "
            "layer_pruning does.",
            check=one_of("site", "block"),
        )
        per_step: int = option(1, "Removals before each fine-tuning.", check=at_least(1))
        how: str = option(
            "line",
            "What takes a rectifier's place: 'line', fitted to it, or 'identity'.",
            check=one_of("line", "identity"),
        )

    def _like(self) -> Method:
        own = self.options
        shared = {"criterion": self.criterion, "per_step": own.per_step}
        if own.place == "block":
            return LayerPruning(LayerPruning.Options(**shared))
        return Easier(Easier.Options(how=own.how, **shared))

    @override
    def step(self, lab: Lab) -> bool:
        return self._like().step(lab)

    @override
    def progress(self, lab: Lab) -> Progress:
        return self._like().progress(lab)

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        return self._like().nothing_to_remove(lab)
