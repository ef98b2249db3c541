"""The options of the built-in tasks: where a network's answer is, and what counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.options.base import Options, at_least, one_of, option


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options):
    """Where the answer is among what the network returns."""

    output_index: int | None = option(
        None,
        "Which of the tensors that the network returns is meant, counted from 0. Needed where "
        "several could be, as in (features, logits).",
        check=at_least(0),
        default_text="found by name or shape",
    )


@dataclass(frozen=True, kw_only=True)
class RegressOptions(TaskOptions):
    """What the loss is."""

    distance: str = option(
        "squared",
        "The loss of a value: its 'squared' error, its 'absolute' error, or 'huber', squared up to "
        "an error of 1 and absolute above.",
        check=one_of("squared", "absolute", "huber"),
    )


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(TaskOptions):
    """What is not counted."""

    ignore_index: int = option(
        255, "Positions whose target is this number count for neither loss nor quality."
    )


BUILT_IN: Mapping[str, type[TaskOptions]] = {
    "binary": TaskOptions,
    "classify": TaskOptions,
    "multilabel": TaskOptions,
    "regress": RegressOptions,
    "segment": SegmentOptions,
}
"""By the names of the tasks, for whom may not wait for PyTorch, which the tasks themselves need."""
