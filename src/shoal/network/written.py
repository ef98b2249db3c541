"""Rectifiers that a model's code writes out in several calls, such as `z * (z > 0)`.

An expression of one tensor, by calls that treat each entry alone, is a function of a number. Its
values tell whether it is a rectifier, however it is written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from shoal.network.contexts import CONTEXT_CALLS
from shoal.network.flow import bound_arguments, module_path, reads_shape, shape_of
from shoal.network.modules import Formula, Step
from shoal.network.ops import op_of

aten = torch.ops.aten

_MOST_CALLS = 16  # GELU by its tanh has 8
_COPIES = (
    aten.lift_fresh_copy.default, aten.detach.default, aten.clone.default, aten.to.device,
    aten.to.dtype, aten.to.dtype_layout,
)  # fmt: skip
_PICKS = (aten.index.Tensor, aten.masked_select.default)
_PUTS = (aten.index_put.default, aten.masked_scatter.default)
_MASKED = (*_PICKS, *_PUTS)
_FILLED = {aten.zeros_like: 0.0, aten.zeros: 0.0, aten.new_zeros: 0.0,
           aten.ones_like: 1.0, aten.ones: 1.0, aten.new_ones: 1.0}  # fmt: skip
_WEIGHT = 0.25
_GRID = torch.arange(-1200, 1201, dtype=torch.float64) / 40  # -30 to 30
_REDUCTIONS = ("sum", "mean", "var", "std", "var_mean", "linalg_vector_norm", "amax", "cumsum")
_PLACES = (torch.device, torch.layout, torch.memory_format)  # those of the input
_KNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": lambda z: F.gelu(z, approximate="tanh"),
    "gelu by sigmoid": lambda z: z * torch.sigmoid(1.702 * z),
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "mish": F.mish,
}


def number_of(node: fx.Node, constants: Mapping[str, Tensor]) -> float | None:
    """Return the one number that fills a tensor which the forward pass makes or holds, or None."""
    while node.target in _COPIES:
        node = node.all_input_nodes[0]
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _FILLED:
        return _FILLED[packet]
    if packet in (aten.scalar_tensor, aten.full, aten.full_like, aten.new_full):
        arguments = bound_arguments(node)
        value = arguments.get("s", arguments.get("fill_value"))
        return float(value) if isinstance(value, int | float) else None
    held = constants.get(str(node.target)) if node.op == "get_attr" else None
    if held is None or held.numel() == 0 or held.is_complex() or held.is_meta:
        return None
    first = held.flatten()[0]
    return float(first) if bool((held == first).all()) else None


class Written:
    """The rectifiers of a graph of ATen calls that are written out in several of them.

    `at` has the kind, the input and the module of each by its last call; `inside` has the calls
    before that one, which a rectifier of its own may be among. `others` are
    activations that are no rectifiers, by their last call: what saturates on both sides, say, and
    gates nothing.
    """

    def __init__(
        self,
        graph: fx.Graph,
        constants: Mapping[str, Tensor],
        is_rectifier: Callable[[fx.Node], bool],
        kept: Mapping[fx.Node, fx.Node],
        data: set[fx.Node],
    ) -> None:
        self.at: dict[fx.Node, tuple[str, fx.Node, Formula]] = {}
        self.inside: set[fx.Node] = set()
        self._constants = constants
        self._kept = kept
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        entered = accumulate(node.target in CONTEXT_CALLS for node in graph.nodes)
        # Calls with one number are in the same contexts: autocast, or without gradients.
        self._within = dict(zip(graph.nodes, entered, strict=True))
        self._data = data
        ends = [n for n in graph.nodes
                if n in self._data and self._is_part(n) and not is_rectifier(n)]  # fmt: skip
        for end in reversed(ends):  # one with a name may have others inside
            if end not in self.inside:
                self._find(end, _name_of, lambda node: False)
        for end in reversed(ends):
            if end not in self.inside and end not in self.at:
                self._find(end, _shape_of_rectifier, lambda n: is_rectifier(n) or n in self.at)
        seen: set[fx.Node] = set()
        self.others: dict[fx.Node, list[fx.Node]] = {}
        for end in reversed(ends):
            if not any(end in known for known in (seen, self.inside, self.at)):
                self._find_other(end, seen, is_rectifier)

    def _find(
        self,
        end: fx.Node,
        judge: Callable[[Tensor], str],
        is_other: Callable[[fx.Node], bool],
    ) -> None:
        for source, inside in self._expressions(end):
            if source not in self._data or any(map(is_other, inside)):
                return
            formula = self._formula(source, inside)
            kind = judge(_values(formula)) if formula is not None else ""
            if formula is not None and kind:
                self.at[end] = kind, source, formula
                self.inside.update(inside[:-1])
                return

    def _find_other(
        self,
        end: fx.Node,
        seen: set[fx.Node],
        is_rectifier: Callable[[fx.Node], bool],
    ) -> None:
        path = module_path(end)
        whole = [
            (source, inside)
            for source, inside in self._expressions(end, least=1, data=self._data)
            if source in self._data and all(module_path(node) == path for node in inside)
        ]
        if not whole:
            return
        source, inside = whole[-1]
        seen.update(inside)
        if any(is_rectifier(node) or node in self.at for node in (source, *inside)):
            return  # what follows a rectifier shapes it, as its square does
        formula = self._formula(source, inside, weights=True)
        if formula is not None and not _is_line(_values(formula)) and not _is_gate(end, self._data):
            self.others[end] = inside

    def _is_part(self, node: fx.Node) -> bool:
        """Whether a node is a call of tensors that treats each entry alone."""
        return (
            isinstance(node.target, OpOverload)
            and op_of(node.target).formula
            and node not in self._kept
            and isinstance(node.meta.get("val"), Tensor)
            and not self._is_number(node)
            and (
                node.target not in _MASKED
                or (_is_masked(node) and not self._is_number(_mask_of(node)))
            )
        )

    def _is_number(self, node: fx.Node) -> bool:
        return number_of(node, self._constants) is not None

    def _expressions(
        self, end: fx.Node, least: int = 2, data: set[fx.Node] | None = None
    ) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
        """Yield each tensor that `end` is a function of, the nearest first, with the calls between.

        There are `least` of these or more, and what they give is read nowhere else. With `data`,
        tensors that are none, such as weights, count as given.
        """
        inside: list[fx.Node] = []
        front = {end}
        while len(inside) < _MOST_CALLS:
            last = max(front, key=self._order.__getitem__)
            if not self._is_part(last) or self._within[last] != self._within[end]:
                return
            if last is not end and not _readers(last) <= {*inside}:
                return
            front.remove(last)
            inside.append(last)
            given = (n for n in last.all_input_nodes if not self._is_number(n))
            front.update(n for n in given if data is None or n in data)
            if len(front) == 1 and len(inside) >= least:
                (source,) = front
                if _alike(source, end) and self._puts_back(inside):
                    yield source, inside[::-1]
            if not front:
                return

    def _puts_back(self, inside: Collection[fx.Node]) -> bool:
        """Whether what is written by a mask is one number, or was picked by the same mask.

        Then each entry goes back to its own place.
        """
        for put in inside:
            waiting = [cast(fx.Node, put.args[2])] if put.target in _PUTS else []
            while waiting:
                node = waiting.pop()
                if node.target in _PICKS:
                    if not _same_call(_mask_of(node), _mask_of(put)):
                        return False
                elif node in inside:
                    waiting.extend(node.all_input_nodes)
                elif not self._is_number(node):
                    return False
        return True

    def _formula(
        self, source: fx.Node, inside: list[fx.Node], *, weights: bool = False
    ) -> Formula | None:
        """Return the module that makes these calls; None if a call says more than a number can.

        With `weights` it has a number in the place of each weight: it shows what is a line.
        """
        dtype = shape_of(source)["dtype"]
        at = {source: 0, **{node: i for i, node in enumerate(inside, 1)}}

        def read(value: Any, form: str = "number") -> Any:
            if isinstance(value, fx.Node):
                if value in at:
                    return {"step": at[value]}
                number = number_of(value, self._constants)
                if number is None and not (weights and _is_real(value)):
                    raise ValueError
                return {form: _WEIGHT if number is None else number}
            if isinstance(value, torch.dtype) and value == dtype:
                return {"dtype": "input"}
            if isinstance(value, list | tuple):
                return list(map(read, value))
            if isinstance(value, bool | int | float | str):
                return value
            raise ValueError

        steps: list[Step] = []
        for node in inside:
            target: Any = node.target
            masked = target in _MASKED  # what is picked from, and scattered, has the mask's shape
            try:
                given = {
                    name: read(
                        value, "filled" if masked and name in ("self", "source") else "number"
                    )
                    for name, value in bound_arguments(node).items()
                    if value is not None and not isinstance(value, _PLACES)
                }
            except ValueError:
                return None
            steps.append((target, given))
        return Formula(steps)


def _is_real(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def data_of(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose tensor depends on the input's values."""
    reached: set[fx.Node] = set()  # also calls that give several tensors
    for node in graph.nodes:
        given = pytree.tree_leaves(node.meta.get("val"))
        enters = node.op == "placeholder"
        if any(isinstance(value, Tensor) for value in given) and (
            enters or not reached.isdisjoint(node.all_input_nodes)
        ):
            reached.add(node)
    return {node for node in reached if isinstance(node.meta["val"], Tensor)}


def _readers(node: fx.Node) -> set[fx.Node]:
    """Return who reads a node's values; a check of its type or a look at its shape does not."""
    check = aten._assert_tensor_metadata.default
    return {n for n in node.users if n.target is not check and not reads_shape(n)}


def _is_gate(node: fx.Node, data: set[fx.Node]) -> bool:
    """Whether what a call gives only scales other data, is summed up, or is the output."""

    def passes(user: fx.Node) -> bool:
        name = getattr(user.target, "_opname", "")
        others = data.intersection(user.all_input_nodes) - {node}
        return (
            user.op == "output" or name in _REDUCTIONS or (name in ("mul", "div") and bool(others))
        )

    return all(map(passes, _readers(node)))


def _mask_of(node: fx.Node) -> Any:
    """Return what says at which places a call picks or writes; None if several indices do."""
    given = node.args[1]
    if not isinstance(given, list | tuple):
        return given
    return given[0] if len(given) == 1 else None


def _is_masked(node: fx.Node) -> bool:
    """Whether a call picks or writes where a mask of its operand's shape is true."""
    operand, mask, added = node.args[0], _mask_of(node), bound_arguments(node).get("accumulate")
    if not (isinstance(operand, fx.Node) and isinstance(mask, fx.Node)) or added:
        return False
    return shape_of(mask) == {"shape": shape_of(operand).get("shape"), "dtype": torch.bool}


def _same_call(a: Any, b: Any) -> bool:
    """Whether two nodes are one, or call one function of the same tensors."""
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
        return bool(a == b)
    return a is b or (
        (a.target, a.kwargs, len(a.args)) == (b.target, b.kwargs, len(b.args))
        and a.op == b.op == "call_function"
        and all(map(_same_call, a.args, b.args))
    )


def _alike(source: fx.Node, end: fx.Node) -> bool:
    known = shape_of(source)
    return bool(known) and known == shape_of(end) and known["dtype"].is_floating_point


def _values(formula: Formula) -> Tensor:
    with torch.no_grad():
        values: Tensor = formula(_GRID)
    return values


def _name_of(values: Tensor) -> str:
    """Return the kind of rectifier that has these values on the grid, or an empty text."""
    if not bool(values.isfinite().all()):
        return ""
    for kind, function in _KNOWN.items():
        if _same(values, function(_GRID)):
            return kind.split()[0]
    slope = float(values[_GRID == -30.0][0]) / -30.0
    if 0.0 < slope < 0.5 and _same(values, F.leaky_relu(_GRID, slope)):
        return "leaky_relu"
    share = float(values[_GRID == 1.0][0])  # of x·sigmoid(βx) it is sigmoid(β)
    if 0.5 < share < 1.0 and _same(
        values, _GRID * (_GRID * math.log(share / (1 - share))).sigmoid()
    ):
        return "silu"
    top = float(values.max())
    return "hardtanh" if 0.0 < top < 30.0 and _same(values, _GRID.clamp(0.0, top)) else ""


def _is_line(values: Tensor) -> bool:
    slopes = values.diff()
    return bool(values.isfinite().all()) and _same(slopes, slopes[:1].expand_as(slopes))


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3)  # GELU's approximations differ by less


def _shape_of_rectifier(values: Tensor) -> str:
    """Return "custom" for what holds or shrinks negative numbers and lets positive ones grow.

    What saturates on both sides is a gate, what treats both alike is none (an absolute value).
    """
    if not bool(values.isfinite().all()):
        return ""

    def at(z: float) -> float:
        return float(values[z == _GRID][0])

    rise, fall = at(30.0) - at(10.0), abs(at(-30.0) - at(-10.0))
    # Up to a cube, and no exponential.
    grows = rise >= 5.0 and at(30.0) - at(20.0) <= 4.0 * (at(20.0) - at(10.0))
    steady = bool((values[_GRID >= 3.0].diff() >= 0).all())
    begins = at(1.0) - at(0.0) > 0.1
    return "custom" if begins and grows and steady and fall <= 0.4 * rise else ""
