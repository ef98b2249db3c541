"""Methods and options as they were: kept until the engine has its lab."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol

from shoal.errors import ConfigError, unknown_name
from shoal.importance import Scores
from shoal.network import Network
from shoal.runtimes import EAGER, check_runtime
from shoal.search.listener import Listener
from shoal.search.records import Step
from shoal.search.settings import Settings
from shoal.surgery.linearize import check_how
from shoal.training import Recipe

__all__ = [
    "Method",
    "Proposal",
    "Recall",
    "Search",
    "Situation",
    "legacy",
]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search for a shallower network.

    Attributes:
        max_drop: how many points of validation accuracy the result may lose against dense (δ).
        epochs: epochs of fine-tuning after each removal.
        dense_epochs: epochs of training the dense network first.
        final_epochs: epochs of fine-tuning the result when the search has ended; it stays as it was
            where that does not help.
        final_lr: the learning rate of these; None for the recipe's.
        per_step: how many sites or blocks go at each step.
        step_saving: for the method "shoal": a step makes moves, `per_step` at most, until they were
            measured to save this share of the network's latency.
        tries: for the method "shoal": so many of the most promising moves of each kind are made and
            fine-tuned briefly before one is chosen; 0 goes by what they cost untrained.
        remove: stop when so many are gone; None goes on until the accuracy stops it.
        patience: how many steps in a row may be below the allowed accuracy before the search ends.
        criterion: what decides who goes; a name of `shoal.importance.criteria`.
        how: for linearizing: "line" or "identity".
        samples: score on this many training samples only; None for all.
        seed: decides the order of the data and all that is random.
        latency_batch: batch size at which latency is measured.
        runtime: where it is measured to decide anything: "eager" or "onnxruntime".
        recipe: how to train.
        keep_first: for "layer_pruning": never drop the first one.
        keep_per_stage: for "layer_pruning": how many must stay in each stage, removable or not.
        moves: for the method "shoal": what it may do, of "linearize", "collapse" and "drop".
        target_latency: stop when the latency is at most this share of dense's (0.5: twice as
            fast), both measured merged; None for no target.
        target_macs: stop when the MACs are at most this share of dense's.
        move_padding: where convolutions that are now linear in a row would be faster as one, let
            the first pad for both: exact borders change, so this is done before fine-tuning only.
        per_latency: for "easier" and "layer_pruning": divide importance by the measured latency
            that the removal saves.
        rewind: after each removal go back to the weights of this epoch of the dense network's
            training, 0 for the weights the search was given; None trains on from where it is.
        rewind_from: a file of weights to go back to instead.
        score_on: score "trained" weights, or the "rewound" ones (with the untrained weights as
            these, that is pruning at initialization).
    """

    max_drop: float = 1.0
    epochs: int = 1
    dense_epochs: int = 0
    final_epochs: int = 0
    final_lr: float | None = None
    per_step: int = 1
    step_saving: float = 1.0
    tries: int = 0
    remove: int | None = None
    patience: int = 0
    criterion: str = "entropy"
    how: str = "line"
    samples: int | None = None
    seed: int = 0
    latency_batch: int = 1
    runtime: str = EAGER
    recipe: Recipe = field(default_factory=Recipe)
    keep_first: bool = False
    keep_per_stage: int = 0
    moves: tuple[str, ...] = ("linearize", "collapse", "drop")
    target_latency: float | None = None
    target_macs: float | None = None
    move_padding: bool = True
    per_latency: bool = False
    rewind: int | None = None
    rewind_from: str | None = None
    score_on: str = "trained"

    def __post_init__(self) -> None:
        """Raise `ConfigError` for the first value that makes no sense."""
        if not isinstance(self.max_drop, int | float) or not self.max_drop >= 0:
            raise ConfigError(
                f"max_drop is {self.max_drop!r}: give the points of accuracy that may be lost, 0 "
                "or more"
            )
        least = {
            "epochs": 0,
            "dense_epochs": 0,
            "final_epochs": 0,
            "per_step": 1,
            "patience": 0,
            "seed": 0,
        }
        least |= {
            "remove": 1,
            "samples": 1,
            "latency_batch": 1,
            "keep_per_stage": 0,
            "rewind": 0,
            "tries": 0,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise ConfigError(f"{name} is {value!r}: give a whole number, {low} or more")
        check_how(self.how)
        if not 0 < self.step_saving <= 1:
            raise ConfigError(
                f"step_saving is {self.step_saving}: give the share of the latency that a step "
                "should save, as 0.05"
            )
        for name in ("target_latency", "target_macs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ConfigError(f"{name} is {value}: give the share of dense's to reach, as 0.5")
        if self.final_lr is not None:
            if self.final_epochs == 0:
                raise ConfigError("final_lr is given without final_epochs: say how many")
            replace(self.recipe, lr=self.final_lr)  # raises for one that makes no sense
        check_runtime(self.runtime)
        self._check_moves()
        self._check_rewinding()

    def _check_moves(self) -> None:
        known = ("linearize", "collapse", "drop")
        object.__setattr__(self, "moves", tuple(self.moves))  # a list comes from YAML
        for move in self.moves:
            if move not in known:
                raise unknown_name("move", move, known)
        if not self.moves:
            raise ConfigError("moves is empty: name one or more of linearize, collapse, drop")

    def _check_rewinding(self) -> None:
        if self.rewind is not None and self.rewind_from is not None:
            raise ConfigError("rewind and rewind_from are both given: choose one of them")
        if self.rewind is not None and self.rewind > self.dense_epochs:
            raise ConfigError(
                f"rewind is {self.rewind} but the dense network is trained for "
                f"{self.dense_epochs} epochs: raise dense_epochs, or use rewind_from"
            )
        if self.score_on not in ("trained", "rewound"):
            raise ConfigError(f"score_on is '{self.score_on}': choose 'trained' or 'rewound'")
        if self.score_on == "rewound" and self.rewind is None and self.rewind_from is None:
            raise ConfigError(
                "score_on is 'rewound' but nothing is rewound: give rewind or rewind_from"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return {**asdict(self), "moves": list(self.moves), "recipe": self.recipe.to_dict()}


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


def legacy(settings: Settings) -> tuple[Method, Search]:
    """Return a method with its options as they were."""
    values = settings.to_dict()
    names = {f.name for f in fields(Search)} - {"recipe"}
    own: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names
    }
    search = Search(**own, recipe=settings.recipe)
    return settings.method(search), search
