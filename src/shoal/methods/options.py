"""The options of a search that every method understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.training import Recipe

__all__ = ["Search"]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How to search for a shallower network.

    Attributes:
        max_drop: how many points of validation accuracy the result may lose against dense (δ).
        epochs: epochs of fine-tuning after each removal.
        dense_epochs: epochs of training the dense network first.
        per_step: how many sites or blocks go at each step.
        remove: stop when so many are gone; None goes on until the accuracy stops it.
        patience: how many steps in a row may be below the allowed accuracy before the search ends.
        criterion: what decides who goes; a name of `shoal.importance.criteria`.
        how: for linearizing: "line" or "identity".
        samples: score on this many training samples only; None for all.
        seed: decides the order of the data and all that is random.
        latency_batch: batch size at which latency is measured.
        recipe: how to train.
    """

    max_drop: float = 1.0
    epochs: int = 1
    dense_epochs: int = 0
    per_step: int = 1
    remove: int | None = None
    patience: int = 0
    criterion: str = "entropy"
    how: str = "line"
    samples: int | None = None
    seed: int = 0
    latency_batch: int = 1
    recipe: Recipe = field(default_factory=Recipe)

    def __post_init__(self) -> None:
        """Raise `ConfigError` for the first value that makes no sense."""
        if not self.max_drop >= 0:
            raise ConfigError(
                f"max_drop is {self.max_drop}: give the points of accuracy that may be lost, 0 or "
                "more"
            )
        least = {"epochs": 0, "dense_epochs": 0, "per_step": 1, "patience": 0, "seed": 0}
        least |= {"remove": 1, "samples": 1, "latency_batch": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise ConfigError(f"{name} is {value!r}: give a whole number, {low} or more")
        if self.how not in ("line", "identity"):
            raise ConfigError(f"how is '{self.how}': choose 'line' or 'identity'")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Search:
        """Build the options from a mapping; raises `NameNotFoundError` for an unknown one."""
        known = {f.name for f in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_name("option", name, sorted(known))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        return {**asdict(self), "recipe": self.recipe.to_dict()}
