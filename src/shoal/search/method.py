"""What a method is, and the registry of methods.

Nothing here needs PyTorch: the command line lists methods and their options without waiting for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shoal.options import Options
from shoal.registry import Registry

if TYPE_CHECKING:
    from shoal.search.lab import Lab

__all__ = ["Method", "Progress", "methods", "register_method"]


@dataclass(frozen=True)
class Progress:
    """How far a method has come with a network.

    Attributes:
        done: how many are removed.
        total: how many there were that could be.
        unit: what is counted, in the plural: "rectifiers", "blocks", …
        per_step: how many go at each step at most; None where nobody can know.
    """

    done: int
    total: int
    unit: str
    per_step: int | None = None


class Method:
    """A short program that decides what is removed next, and how to train after it.

    A method of one's own is a subclass in a file of its own:

        @shoal.register_method("my_method")
        class MyMethod(shoal.Method):
            @dataclass(frozen=True, kw_only=True)
            class Options(shoal.Options):
                threshold: float = shoal.option(0.9, "Linearize slopes above this.")

            def step(self, lab): ...
            def progress(self, lab): ...

    All it knows is in the lab: the network, its plan, the steps so far. What it decides must follow
    from these, so that a run that was interrupted goes on alike.

    Args:
        options: an instance of the class's `Options`; None takes the defaults.

    Attributes:
        Options: the class of its options, each field made by `option`.
        recipe: the name of the recipe it trains by unless another is given.
        scores: what its option `criterion` scores, "site" or "block": checked before anything is
            done. Empty for a method without such an option.
    """

    Options: ClassVar[type[Any]] = Options
    recipe: ClassVar[str] = "finetune"
    scores: ClassVar[str] = ""

    def __init__(self, options: Any = None) -> None:
        self.options = type(self).Options() if options is None else options

    def step(self, lab: Lab) -> bool:
        """Change `lab.network` and train it, by the lab's verbs.

        Returns:
            False if there is nothing left to do; `return lab.done("why")` says why.

        Raises:
            TrainingError: the network is broken (NaN, a layer that died): the search ends with
                what it has.
        """
        raise NotImplementedError

    def progress(self, lab: Lab) -> Progress:
        """Return how much of `lab.base` is gone in `lab.network`."""
        raise NotImplementedError

    def nothing_to_remove(self, lab: Lab) -> str:
        """Return why there is nothing to do on the network that was just captured, or ""."""
        return ""


methods: Registry[Any] = Registry("method", "shoal.methods")
register_method = methods.register
