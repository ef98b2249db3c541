"""What a method is, and the registry of methods.

Nothing here needs PyTorch: the command line lists methods and their options without waiting for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from shoal.options import Options, at_least, option
from shoal.registry import Registry

if TYPE_CHECKING:
    from shoal.search.lab import Lab


@dataclass(frozen=True)
class Progress:
    """How far a method has come with a network.

    Attributes:
        done: how many are removed.
        total: how many there were that could be.
        unit: what is counted, in the plural: "rectifiers", "blocks", …
        per_step: how many go at each step at most; None where nobody can know.

    Example:
        >>> import shoal
        >>> shoal.Progress(done=3, total=13, unit="rectifiers").done
        3
    """

    done: int
    total: int
    unit: str
    per_step: int | None = None


class Method:
    """A short program that decides what is removed next, and how to train after it.

    All it knows is in the lab: the network, its plan, the steps so far. What it decides must follow
    from these, so that a run that was interrupted goes on alike.

    Args:
        options: an instance of the class's `Options`; None takes the defaults.

    Attributes:
        Options: the class of its options, each field made by `option`.
        recipe: the name of the recipe it trains by unless another is given.
        removes: whether it makes networks shallower; else nobody is told how to get further.
        scores: what its option `criterion` scores, "site" or "block": checked before anything is
            done. Empty for a method without such an option.

    Example:
        >>> import shoal
        >>> class LastFirst(shoal.Method):
        ...     def step(self, lab):
        ...         left = [site.name for site in lab.network.sites if site.linearized is None]
        ...         if not left:
        ...             return lab.done()
        ...         lab.linearize(left[-1:])
        ...         lab.train()
        ...         return True
    """

    Options: ClassVar[type[Any]] = Options
    recipe: ClassVar[str] = "finetune"
    removes: ClassVar[bool] = True
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

    def keeps(self, lab: Lab) -> Callable[[Any], object] | None:
        """Return what is called after each optimizer step of the last training, or None.

        A method whose steps switch something off for good keeps it off there.
        """
        return None

    def progress(self, lab: Lab) -> Progress:
        """Return how much of `lab.base` is gone in `lab.network`: here, of its rectifiers."""
        total = lab.base.sites_left
        return Progress(total - lab.network.sites_left, total, "rectifiers")

    def nothing_to_remove(self, lab: Lab) -> str:
        """Return why there is nothing to do on the network that was just captured, or ""."""
        return ""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(Options):
    """The options of a method that scores places and removes the lowest."""

    criterion: str = option("", "What decides which place goes: the lowest score does.")
    per_step: int = option(
        1, "Removals before each fine-tuning. More is quicker and coarser.", check=at_least(1)
    )
    samples: int | None = option(
        None,
        "Score on this many training samples only. Quicker on large data; a note says when the "
        "choice is then not certain.",
        check=at_least(1),
        default_text="all",
    )
    per_latency: bool = option(
        False,
        "Divide importance by the milliseconds that the removal was measured to save, so that "
        "what is slow goes sooner.",
    )


M = TypeVar("M", bound=type[Any])

methods: Registry[Any] = Registry("method", "shoal.methods")


def none_worthy(per_latency: bool) -> str:
    """Return why a search ends where all scores are infinite; see `Scores.worth_removing`."""
    if per_latency:
        return "no removal that is left was measured to save time"
    return "without any of what is left the network computes NaN"


def register_method(name: str) -> Callable[[M], M]:
    """Return a decorator that makes a `Method` known by a name, as `--method name`.

    Raises:
        ConfigError: the name is taken.

    Example:
        >>> import shoal
        >>> from dataclasses import dataclass
        >>> @shoal.register_method("patient")
        ... class Patient(shoal.Method):
        ...     @dataclass(frozen=True, kw_only=True)
        ...     class Options(shoal.Options):
        ...         wait: int = shoal.option(3, "How long to wait.", unit="epochs")
        >>> Patient(Patient.Options(wait=5)).options.wait
        5
    """
    return methods.register(name)
