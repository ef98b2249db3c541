"""Prove that two networks compute the same: the largest error over their outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import torch
from torch.utils import _pytree as pytree

from shoal.errors import ConfigError
from shoal.network.inputs import (
    Inputs,
    as_call,
    borrowed,
    calling,
    home_device,
    map_tensors,
    resolve_device,
    tensors_of,
)  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """How well the outputs of two networks agree."""

    # The largest |a - b| over all outputs; infinite where only one is NaN or infinite, or where the
    # outputs differ in structure or shape.
    max_abs_error: float
    max_rel_error: float  # the largest, over the output tensors, of max |a - b| / max |a|
    identical: bool  # whether all outputs are equal bit by bit
    n_inputs: int  # how many inputs (batches) were compared
    mismatch: str = ""  # where structure, shape or a plain value differs, in words

    def fault(self, allowed: float) -> str:
        """Return in words what is wrong; "" if the relative error is at most what is allowed."""
        if self.max_rel_error <= allowed:  # NaN is not
            return ""
        return self.mismatch or f"relative error {self.max_rel_error:.1e}, allowed {allowed:.0e}"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values (errors may be infinite)."""
        return asdict(self)


def compare_outputs(
    a: Callable[..., Any],
    b: Callable[..., Any],
    inputs_list: Iterable[Inputs],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Agreement:
    """Run two networks on the same inputs in eval mode and compare all they give out.

    Outputs may be tensors or nested tuples, lists and dicts of them. Values are compared in double
    precision; NaN equals NaN and an infinity equals itself. Both networks are left as they were.

    Args:
        a: the reference, which relative errors are relative to.
        b: the network that should do the same.
        inputs_list: tensors, tuples of them or dicts of keyword inputs; or a single tensor or dict.
        dtype: run both in this floating type (`torch.float64` for a strict proof).
        device: where to run; by default where `a` is.

    Raises:
        ConfigError: there are no inputs, a network cannot be called with them, or there is no such
            device.
    """
    if isinstance(inputs_list, torch.Tensor | Mapping):
        inputs_list = [inputs_list]
    found: list[Agreement] = []
    there = resolve_device(device) if device is not None else None
    with (
        borrowed(a, device=there, dtype=dtype) as first,
        borrowed(b, device=there, dtype=dtype) as second,
        torch.inference_mode(),
    ):
        for inputs in inputs_list:
            place = there or home_device(a, inputs)
            outputs = _run("first", first, inputs, dtype, place)
            found.append(_compare(outputs, _run("second", second, inputs, dtype, place)))
    if not found:
        raise ConfigError("there are no inputs to compare the networks on: give at least one")
    return _worst(found, len(found))


def _run(
    which: str, model: Any, inputs: Inputs, dtype: torch.dtype | None, place: torch.device
) -> Any:
    def copy(tensor: torch.Tensor) -> torch.Tensor:  # a model may overwrite its inputs
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(place, wanted, copy=True)

    args, kwargs = as_call(map_tensors(copy, inputs))
    with calling(f"the {which} network"):
        return model(*args, **kwargs)


def _worst(found: Sequence[Agreement], n_inputs: int) -> Agreement:
    return Agreement(
        max((one.max_abs_error for one in found), default=0.0),
        max((one.max_rel_error for one in found), default=0.0),
        all(one.identical for one in found),
        n_inputs,
        next((one.mismatch for one in found if one.mismatch), ""),
    )


def _compare(expected: Any, found: Any) -> Agreement:
    expected_leaves, expected_form = pytree.tree_flatten(expected)
    found_leaves, found_form = pytree.tree_flatten(found)
    if expected_form != found_form:
        return Agreement(inf, inf, False, 1, "the outputs differ in structure")
    return _worst(list(map(compare_leaf, expected_leaves, found_leaves, itertools.count())), 1)


def compare_leaf(x: Any, y: Any, index: int = 0) -> Agreement:
    """Compare one of the values that two networks give out."""
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        if type(x) is type(y) and x == y:
            return Agreement(0.0, 0.0, True, 1)
        return Agreement(inf, inf, False, 1, f"output {index} is {x!r} in one, {y!r} in the other")
    if x.shape != y.shape:
        shapes = f"{tuple(x.shape)} in one, {tuple(y.shape)} in the other"
        return Agreement(inf, inf, False, 1, f"output {index} has shape {shapes}")
    x, y = x.detach().cpu(), y.detach().cpu()
    identical = x.dtype == y.dtype and torch.equal(_bytes(x), _bytes(y))
    return Agreement(*_errors(x, y), identical, 1)


def _errors(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return the largest absolute error, and that over the largest finite |x|."""
    wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
    x, y = x.to(wide), y.to(wide)
    same = (x == y) | (x.isnan() & y.isnan())  # equal infinities too
    if bool(same.all()):
        return 0.0, 0.0
    # What is not the same and not finite differs by infinity, or by NaN where one is NaN.
    errors = torch.where(same, 0.0, (x - y).abs()).nan_to_num(nan=inf, posinf=inf)
    largest = float(errors.max())
    sizes = x.abs()[x.isfinite()]
    scale = float(sizes.max()) if sizes.numel() else 0.0
    return largest, largest / scale if scale > 0 else inf


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def random_like(inputs: Inputs, seed: int = 0) -> Inputs:
    """Return random inputs of the same form, shapes, types and devices.

    Floating and complex values are standard normal; integers are uniform between the smallest and
    the largest of the given tensor, so that indices stay valid; booleans are fair coins. The same
    seed gives the same values on every device; the global random state is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    if not tensors_of(inputs):
        raise ConfigError("the inputs hold no tensor to make random ones like: give at least one")

    def random(tensor: torch.Tensor) -> torch.Tensor:
        shape = tuple(tensor.shape)
        if tensor.is_complex() or tensor.is_floating_point():
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            values = torch.randn(shape, dtype=wide, generator=generator)
        elif tensor.numel() == 0:
            values = torch.zeros(shape)
        else:
            coin = tensor.dtype == torch.bool
            low, high = (0, 1) if coin else (int(tensor.min()), int(tensor.max()))
            values = torch.randint(low, high + 1, shape, generator=generator)
        # Keeps the memory format (channels_last) of the given tensor.
        return torch.empty_like(tensor, requires_grad=False).copy_(values)

    made: Inputs = map_tensors(random, inputs)
    return made
