"""How a call of a network is brought into the form of the captured one.

Inputs that are no tensors (a scale, `return_dict=True`) are constants of the captured graph: a call
may leave them out, as a loader's batches do, but must not change them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from shoal.errors import CaptureError
from shoal.network.input_sizes import Sizes, readable
from shoal.network.inputs import Call, misfit


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of an example tensor; dimension 0 is the batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class InputSpec:
    """What the network is called with."""

    structure: pytree.TreeSpec  # the tree of positional and keyword inputs
    keywords: tuple[str, ...]  # the names of the keyword inputs in the order of the tree
    parameters: tuple[str, ...]  # the parameter names of the original's `forward`
    leaves: tuple[Any, ...]  # the example's: tensors by their `TensorSpec`, others as they are
    weights: torch.dtype | None = None  # the parameters' floating-point type at capture, if any
    sizes: Sizes = field(default_factory=Sizes)  # what the inputs' sizes must be

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the leaves of a call, in the graph's order; raises `CaptureError` on a misfit."""
        captured = pytree.tree_unflatten(self.leaves, self.structure)
        call = in_captured_form(captured, self.parameters, args, kwargs)
        leaves, structure = pytree.tree_flatten(call)
        if structure != self.structure:
            wanted = [*self.parameters[: len(captured[0])], *self.keywords]
            raise CaptureError(
                f"the network was captured with the inputs ({', '.join(wanted)}) and called with "
                f"{len(args)} positional and {sorted(kwargs)} keyword inputs: call it the same way"
            )
        check_constants(captured, self.parameters, self.leaves, leaves)
        if not self.sizes.free:
            self.check_sizes(leaves)
        return leaves

    def size_lines(self) -> list[str]:
        """Say which sizes the inputs may have, in a line for each input and each condition."""
        shapes = {i: leaf.shape for i, leaf in enumerate(self.leaves) if hasattr(leaf, "shape")}
        lines = []
        for number, shape in shapes.items():
            which = f"input {number}" if len(shapes) > 1 else "the input"
            lines.append(f"{which} may be {self.sizes.described(number, shape)}")
        return lines + [f"only for {readable(condition)}" for condition in self.sizes.conditions]

    def wrong_type(self, leaves: Sequence[Any], weights: torch.dtype | None) -> str:
        """Return in a line which type of the inputs does not go with the weights', if one is so."""
        given = {
            leaf.dtype
            for leaf, known in zip(leaves, self.leaves, strict=True)
            if isinstance(leaf, Tensor) and known.dtype.is_floating_point
        }
        return misfit(given, weights, "the network")

    def check_sizes(self, leaves: Sequence[Any]) -> None:
        """Raise `CaptureError` if a call has sizes that the network is not for."""
        # An export takes the branch that was captured, and states its own conditions.
        if not torch.compiler.is_exporting():
            self.sizes.check(leaves, self.leaves)


def in_captured_form(
    captured: Call, parameters: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Call:
    """Return a call's arguments by position and by keyword as the captured call gave them.

    `captured` has a `TensorSpec` for each tensor; `parameters` are the names in the model's
    `forward`. Constants that are left out are filled in; what does not fit stays by keyword.
    """
    positional, named = captured
    rest, given = dict(kwargs), list(args[: len(positional)])
    first = len(given)
    waiting = parameters[first : len(positional)]
    for name, value in zip_longest(waiting, positional[first:]):
        if name not in rest and not _is_constant(value):
            break
        given.append(rest.pop(name, value))
    beyond = args[len(positional) :]
    rest.update(zip_longest(parameters[len(positional) :][: len(beyond)], beyond))
    ordered = {
        name: rest.pop(name, value)
        for name, value in named.items()
        if name in rest or _is_constant(value)
    }
    return tuple(given), {**ordered, **rest}


def check_constants(
    captured: Call, parameters: Sequence[str], wanted: Sequence[Any], given: Sequence[Any]
) -> None:
    """Raise `CaptureError` if a call has another value where the capture fixed one.

    `wanted` and `given` are the leaves of the captured call and of this one.
    """
    for index, (fixed, value) in enumerate(zip(wanted, given, strict=True)):
        is_tensor = isinstance(fixed, TensorSpec)
        if isinstance(value, Tensor) if is_tensor else _same_constant(fixed, value):
            continue
        name = _argument_of(captured, parameters, index)
        if is_tensor:
            raise CaptureError(
                f"{name} is {value!r}, but the network was captured with a tensor there: give one"
            )
        shown = "a tensor" if isinstance(value, Tensor) else repr(value)
        raise CaptureError(
            f"the network was captured with {name}={fixed!r}, which is part of it now, and called "
            f"with {shown}: leave {name} out, or capture the model again with the other value"
        )


def _argument_of(captured: Call, parameters: Sequence[str], index: int) -> str:
    """Return the name of the argument that holds the leaf of that number."""
    positional, named = captured
    own = parameters[: len(positional)]
    names = (*own, *(f"input {i}" for i in range(len(own), len(positional))), *named)
    trees = zip(names, (*positional, *named.values()), strict=True)
    return [name for name, tree in trees for _ in pytree.tree_leaves(tree)][index]


def _is_constant(captured: Any) -> bool:
    """Whether an argument of the captured call holds no tensor."""
    return not any(isinstance(leaf, TensorSpec) for leaf in pytree.tree_leaves(captured))


def _same_constant(captured: Any, given: Any) -> bool:
    if type(captured) is not type(given):
        return False
    return bool(captured == given or (captured != captured and given != given))  # NaN is NaN
