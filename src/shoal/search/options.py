"""The options of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.runtimes import EAGER, check_runtime
from shoal.surgery.linearize import check_how
from shoal.training import Recipe

__all__ = ["OF_SOME_METHODS", "Search"]

OF_SOME_METHODS = frozenset(
    {"how", "keep_first", "keep_per_stage", "moves", "per_latency", "step_saving", "tries"}
)
"""Options that a method reads only where it says so."""


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

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Search:
        """Build the options from a mapping.

        Raises:
            NameNotFoundError: there is no such option.
            ConfigError: it is one of the training, or has a value that makes no sense.
        """
        known = {f.name for f in fields(cls)}
        training = {f.name for f in fields(Recipe)}
        for name in values:
            if name in training:
                raise ConfigError(
                    f"{name} is an option of the training: give it in recipe={{'{name}': …}}"
                )
            if name not in known:
                raise unknown_name("option", name, sorted(known))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return {**asdict(self), "moves": list(self.moves), "recipe": self.recipe.to_dict()}
