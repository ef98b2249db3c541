"""Which of the tensors that a network returns is the one that a task is about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from shoal.errors import OptionError, TrainingError

# Under these names libraries return it: transformers and timm; torchvision's segmentation.
_NAMES = ("logits", "out")


def chosen_output(
    returned: Any, fits: Callable[[Tensor], bool], expected: str, at: int | None = None
) -> Tensor:
    """Return the tensor of what a network returned that a task is about.

    That is the tensor itself where only one is returned; else the one at place `at`; else the one
    named "logits" or "out"; else the only one that `fits` the task.

    Args:
        returned: a tensor, or a tuple, list, mapping or dataclass that holds tensors.
        fits: whether a tensor has the form that the task `expected`.
        expected: that form in words, such as "[batch, classes]".
        at: the place among the tensors, from 0; None finds it.

    Raises:
        TrainingError: there is no tensor, or several could be meant.
        OptionError: there is no tensor at that place.
    """
    named = dict(_tensors(returned))
    tensors = list(named.values())
    if not tensors:
        raise TrainingError(
            f"the network returned a {type(returned).__name__} without a tensor: "
            f"it must return {expected}, or a tuple or dict that holds it"
        )
    if at is not None:
        if at >= len(tensors):
            raise OptionError("output_index", at, f"a place from 0 to {len(tensors) - 1}")
        return tensors[at]
    known = [named[name] for name in _NAMES if name in named]
    fitting = known or [tensor for tensor in tensors if fits(tensor)]
    if len(tensors) == 1 or len(fitting) == 1:
        return (fitting or tensors)[0]
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in named.items())
    which = "several of which" if fitting else "none of which"
    raise TrainingError(
        f"the network returns {len(tensors)} tensors ({shapes}), {which} could be the output "
        f"{expected}: say which by output_index, or let the network return a dict with 'logits'"
    )


def _tensors(returned: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by name, or by place where they have none."""
    for name, value in _parts(returned):
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, tuple | list | Mapping) and value:
            for inner, tensor in _tensors(value):
                yield f"{name}.{inner}", tensor


def _parts(returned: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(returned, Tensor):
        yield "output", returned
    elif isinstance(returned, Mapping):
        yield from ((str(name), value) for name, value in returned.items())
    elif dataclasses.is_dataclass(returned) and not isinstance(returned, type):
        yield from ((f.name, getattr(returned, f.name)) for f in dataclasses.fields(returned))
    elif isinstance(returned, tuple) and hasattr(returned, "_fields"):
        yield from zip(returned._fields, returned, strict=True)
    elif isinstance(returned, tuple | list):
        yield from ((str(place), value) for place, value in enumerate(returned))
