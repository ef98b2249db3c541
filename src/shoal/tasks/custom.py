"""A task with a loss or a quality of one's own: `shoal.compress(loss=…, evaluate=…)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from typing_extensions import override

from shoal.errors import ConfigError
from shoal.tasks.task import Task

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""Of what the network returns and the target: the mean over the batch [], or one a sample [B]."""

Judge: TypeAlias = Callable[[Any, Any], float]
"""Of the network and data: the quality in points, higher is better."""


def with_own(task: Task, loss: Loss | None = None, evaluate: Judge | None = None) -> Task:
    """Return a task with a loss of one's own, a quality of one's own, or both.

    With both, nothing is asked of outputs and targets: they are the user's business.

    Raises:
        ConfigError: one of them is no function.

    Example:
        >>> import shoal, torch
        >>> from shoal.tasks import find_task, with_own
        >>> def mean_ap(network, data):
        ...     return 42.0
        >>> with_own(find_task(), evaluate=mean_ap).quality_name
        'mean ap'
    """
    for name, given in (("loss", loss), ("evaluate", evaluate)):
        if given is not None and not callable(given):
            raise ConfigError(f"{name} is a {type(given).__name__}: give a function")
    if loss is None and evaluate is None:
        return task
    if loss is None or evaluate is None:
        return _Changed(task, loss, evaluate)
    return Custom(loss, evaluate)


def identity_of(task: Task) -> dict[str, Any]:
    """Return what tells a task from others of its name: options, and functions of the user's.

    What is as usual is left out, so that what was begun without it goes on.
    """
    usual = type(task.options)()
    options = task.options.identity()
    changed = {name: value for name, value in options.items() if value != getattr(usual, name)}
    return {**changed, **names_of(_own_of(task))}


def names_of(functions: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the full names of functions, what a run knows them by; None for what is not given."""
    return {name: None if one is None else _full_name(one) for name, one in functions.items()}


class Custom(Task):
    """Whatever a user's loss and quality make of it."""

    loss_unit = ""
    quality_unit = ""
    expected = "what loss= takes"

    def __init__(self, loss: Loss, evaluate: Judge) -> None:
        super().__init__()
        self._loss = loss
        self.own = {"loss": loss, "evaluate": evaluate}
        self.judge = evaluate
        self.quality_name = _name_of(evaluate)

    @override
    def output(self, returned: Any) -> Any:
        return returned

    @override
    def fits(self, output: Tensor) -> bool:
        return True

    @override
    def check(self, output: Any, target: Any, values: bool = True) -> Any:
        return target

    @override
    def losses(self, output: Any, target: Any, smoothing: float = 0.0) -> Tensor:
        return self._loss(output, target)


class _Changed(Task):
    """A task of which either the loss or the quality is the user's."""

    def __init__(self, base: Task, loss: Loss | None, evaluate: Judge | None) -> None:
        super().__init__()
        self._base, self._loss = base, loss
        own = {"loss": loss, "evaluate": evaluate}
        self.own = _own_of(base) | {name: one for name, one in own.items() if one is not None}
        self.options = base.options
        self.quality_name, self.quality_unit = base.quality_name, base.quality_unit
        self.loss_unit, self.expected = base.loss_unit, base.expected
        self.judge = base.judge
        if loss is not None:
            self.loss_unit = ""
        if evaluate is not None:
            self.judge, self.quality_name = evaluate, _name_of(evaluate)
            self.quality_unit = ""
        # A name is of the class, and this one stands for that of the base.
        self.name = base.name  # type: ignore[misc]

    @override
    def output(self, returned: Any) -> Any:
        # A user's loss takes what the network returns, whole.
        return returned if self._loss is not None else self._base.output(returned)

    @override
    def fits(self, output: Tensor) -> bool:
        return self._base.fits(output)

    @override
    def check(self, output: Any, target: Any, values: bool = True) -> Any:
        return target if self._loss is not None else self._base.check(output, target, values)

    @override
    def notes(self, output: Any, target: Any) -> Iterator[str]:
        if self._loss is None:
            yield from self._base.notes(output, target)

    @override
    def losses(self, output: Any, target: Any, smoothing: float = 0.0) -> Tensor:
        if self._loss is None:
            return self._base.losses(output, target, smoothing)
        return self._loss(output, target)

    @property
    @override
    def has_hits(self) -> bool:
        return self._base.has_hits

    @override
    def hits(self, output: Any, target: Any) -> Tensor:
        # Training asks for them at every step, and may not wait for a GPU.
        return self._base.hits(*self._both(output, target, values=False))

    @override
    def rows(self, output: Any, target: Any) -> Tensor:
        return self._base.rows(*self._both(output, target, values=True))

    @override
    def quality(self, rows: Tensor) -> float:
        return self._base.quality(rows)

    @override
    def chance(self, rows: Tensor) -> float | None:
        return self._base.chance(rows)

    @property
    @override
    def has_divergence(self) -> bool:
        return self._base.has_divergence

    @override
    def divergence(self, output: Any, other: Any) -> Tensor:
        return self._base.divergence(self._base_output(output), self._base_output(other))

    @override
    def answers(self, output: Any) -> Tensor | None:
        return self._base.answers(self._base_output(output))

    def _base_output(self, output: Any) -> Tensor:
        return self._base.output(output) if self._loss is not None else output

    def _both(self, output: Any, target: Any, values: bool) -> tuple[Tensor, Any]:
        """Return output and target as the task that was changed takes them."""
        if self._loss is None:
            return output, target
        found = self._base.output(output)
        return found, self._base.check(found, target, values)


def _own_of(task: Task) -> dict[str, Any]:
    """Return the functions of the user's in a task, by what they are for."""
    return task.own if isinstance(task, Custom | _Changed) else {}


def _unwrapped(function: Any) -> Any:
    while hasattr(function, "func"):  # functools.partial
        function = function.func
    return function


def _full_name(function: Any) -> str:
    """Return module and name of a function, or of the class of another callable."""
    function = _unwrapped(function)
    known = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(known, '__module__', None)}.{known.__qualname__}"


def _name_of(function: Any) -> str:
    """Return what a user's quality is called: the function's name in words."""
    function = _unwrapped(function)
    name = getattr(function, "__name__", type(function).__name__)
    return "quality" if name == "<lambda>" else name.replace("_", " ").strip()
