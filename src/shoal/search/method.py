"""What a method is, and the registry of methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from shoal.errors import ConfigError
from shoal.importance import Scores
from shoal.network import Network
from shoal.registry import Registry
from shoal.search.listener import Listener
from shoal.search.options import OF_SOME_METHODS, Search
from shoal.search.records import Step

__all__ = [
    "Method",
    "Proposal",
    "Recall",
    "Situation",
    "defaults_of",
    "make_method",
    "methods",
    "recipe_of",
]


@dataclass(frozen=True)
class Proposal:
    """What a method wants to do next.

    Attributes:
        operation: "linearize", "drop" or "collapse".
        names: the sites or blocks.
        scores: of all candidates.
        apply: does it to the network it is given, in place.
        notes: what the user should know.
    """

    operation: str
    names: tuple[str, ...]
    scores: Scores
    apply: Callable[[Network], object]
    notes: tuple[str, ...] = ()


class Recall(Protocol):
    """Returns what `measure` gives, or gave when this step was begun before; JSON values."""

    def __call__(self, name: str, measure: Callable[[], Any], *, together: bool = False) -> Any:
        """Return the figures of that name, the same in every process.

        The main process alone measures, so that nobody is in the way; `together` lets all do it,
        for what they train.
        """
        ...


@dataclass(frozen=True)
class Situation:
    """Where a search stands when it asks a method for the next step.

    Attributes:
        history: the steps so far, of which the first is the dense network's.
        listener: hears of the progress.
        recall: what a method measures it gets through this, so that an interrupted step has the
            same figures when it is gone on with.
        rehearse: fine-tunes a network in place for a few optimizer steps, as after a removal; None
            where nothing is fine-tuned, or not by the built-in trainer.
    """

    history: Sequence[Step]
    listener: Listener
    recall: Recall
    rehearse: Callable[[Network], object] | None


class Method(Protocol):
    """A short program over the rooms: what can still go, and what goes next.

    Attributes:
        unit: what its progress is counted in, "rectifiers" or "blocks".
        reads: which options of `OF_SOME_METHODS` it reads; a method without it reads all.
        defaults: options of a search with a default of its own; may be missing.
        recipe: the recipe it trains by unless told otherwise; "finetune" if it is missing.
    """

    unit: ClassVar[str]

    def candidates(self, network: Network) -> list[str]:
        """Return the names of what can still be removed."""
        ...

    def nothing_to_remove(self, network: Network) -> str:
        """Return, where a network that was just captured has no candidate, why and what to do."""
        ...

    def propose(
        self, network: Network, data: Iterable[Any], count: int, situation: Situation
    ) -> Proposal | None:
        """Score the candidates on training data and choose up to `count`; None ends the search.

        Whatever it decides follows from its arguments alone, so that a resumed run decides alike.

        Raises:
            TrainingError: the network is broken (NaN, or a layer that died): the search must end.
        """
        ...


methods: Registry[Callable[[Search], Method]] = Registry("method")


def defaults_of(method: str) -> dict[str, Any]:
    """Return the options of a search that a method has its own defaults for.

    Raises:
        NameNotFoundError: there is no such method.
    """
    return dict(getattr(methods[method], "defaults", {}))


def recipe_of(method: str) -> str:
    """Return the name of the recipe that a method trains by unless told otherwise.

    Raises:
        NameNotFoundError: there is no such method.
    """
    return str(getattr(methods[method], "recipe", "finetune"))


def make_method(name: str, options: Mapping[str, Any]) -> tuple[Method, Search]:
    """Return a method with its options, its own defaults filled in.

    Args:
        name: of the registry.
        options: fields of `Search` that differ from the defaults.

    Raises:
        NameNotFoundError: there is no such method, or no such option.
        ConfigError: an option makes no sense, or the method does not read it.
    """
    search = Search.of({**defaults_of(name), **options})
    for option in sorted(OF_SOME_METHODS - _reads(name)):
        if getattr(search, option) != getattr(Search(), option):
            others = [other for other in methods.names() if option in _reads(other)]
            raise ConfigError(
                f"the method '{name}' does not read {option}: leave it out, or choose "
                f"{' or '.join(repr(other) for other in others)}"
            )
    return methods[name](search), search


def _reads(method: str) -> frozenset[str]:
    return frozenset(getattr(methods[method], "reads", OF_SOME_METHODS))
