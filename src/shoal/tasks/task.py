"""What a task is: what a network is for. It says what loss and quality are, and checks both sides.

The quality of a network is computed from what each sample adds to it, so that it depends neither on
batches nor on the number of processes, and holds for measures that are no means over samples (mean
average precision, mean intersection over union, R²).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, DataError, TrainingError, one_line
from shoal.options import TaskOptions, assert_takes
from shoal.registry import Registry
from shoal.tasks.outputs import chosen_output


class Task(ABC):
    """What a network is for; a subclass is made with the options of its `Options`, by keyword.

    `B` is the number of samples in a batch, `N` that of all samples. Outputs come as `output` finds
    them and targets as `check` returns them.

    Attributes:
        name: as it was registered; else that of the class.
        quality_name: what the quality is called in tables ("top-1").
        quality_unit: of the quality, of which points are differences ("%").
        loss_unit: of the loss ("nats"); empty for plain numbers.
        expected: the form of its outputs in words, for messages ("[batch, classes]").
        judge: gives the quality of a network on data, in place of `rows` and `quality`.
        options: its options.

    Example:
        >>> import shoal, torch
        >>> class Ordered(shoal.Task):
        ...     quality_name = "within one class"
        ...     expected = "[batch, classes]"
        ...     def fits(self, output):
        ...         return output.ndim == 2
        ...     def check(self, output, target, values=True):
        ...         return target
        ...     def losses(self, output, target, smoothing=0.0):
        ...         return torch.nn.functional.cross_entropy(output, target, reduction="none")
        ...     def hits(self, output, target):
        ...         return (output.argmax(1) - target).abs() <= 1
        >>> from shoal.training import evaluate
        >>> batches = [(torch.eye(3), torch.tensor([0, 2, 0]))]
        >>> found = evaluate(torch.nn.Identity(), batches, task=Ordered())
        >>> found.name, round(found.quality, 1)
        ('within one class', 66.7)
    """

    name: ClassVar[str] = ""
    quality_name: str = "accuracy"
    quality_unit: str = "%"
    loss_unit: str = "nats"
    expected: str = "one tensor"
    judge: Callable[[nn.Module, Any], float] | None = None

    Options = TaskOptions

    options: Any  # of its `Options`

    def __init_subclass__(cls) -> None:
        """Name a class that is not registered, such as one in a user's file, after itself."""
        super().__init_subclass__()
        cls.name = cls.__name__

    def __init__(self, **options: Any) -> None:
        self.options = self.Options.from_dict(options)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.options))

    # ------------------------------------------------------------------ what goes in

    def output(self, returned: Any) -> Tensor:
        """Return the tensor of what the network returned that the task is about.

        Raises:
            TrainingError: there is none, or several could be meant.
        """
        at = self.options.output_index
        return chosen_output(returned, self.fits, self.expected, at)

    @abstractmethod
    def fits(self, output: Tensor) -> bool:
        """Whether a tensor has the form of the task's outputs."""

    @abstractmethod
    def check(self, output: Tensor, target: Any, values: bool = True) -> Any:
        """Return the target in the form that the other functions take, if it fits the output.

        To look at the `values` and not at shapes and types alone makes a GPU wait.

        Raises:
            DataError: it does not, in one line that says what to do. On a GPU a wrong index would
                end the process, not the call.
        """

    def notes(self, output: Tensor, target: Any) -> Iterator[str]:
        """Yield what to say of outputs that can be computed with and may be a mistake."""
        yield from ()

    # ------------------------------------------------------------------ what comes out

    @abstractmethod
    def losses(self, output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
        """Return the loss of each sample, `[B]`, in fp32 or better.

        `smoothing` is the share of a class target that is spread evenly over the classes; a task
        without classes takes no notice.
        """

    def hits(self, output: Tensor, target: Any) -> Tensor:
        """Return what share of a sample's answers is right, `[B]` from 0 to 1.

        Raises:
            ConfigError: answers of this task are not right or wrong.
        """
        raise ConfigError(
            f"answers of the task '{self.name}' are not right or wrong, so there is no accuracy to "
            "judge single samples by: judge by the loss"
        )

    @property
    def has_hits(self) -> bool:
        """Whether its answers are right or wrong."""
        return type(self).hits is not Task.hits

    def rows(self, output: Tensor, target: Any) -> Tensor:
        """Return what each sample adds to the quality, `[B, k]`: here, its share of hits."""
        return hits_of(self, output, target, len(output))[:, None].double()

    def quality(self, rows: Tensor) -> float:
        """Return the quality in points, higher is better, of all samples' rows `[N, k]`."""
        return 100.0 * float(rows[:, 0].sum()) / len(rows)

    def chance(self, rows: Tensor) -> float | None:
        """Return the quality that one answer to every sample reaches; None if that is not known."""
        return None

    def divergence(self, output: Tensor, other: Tensor) -> Tensor:
        """Return how far each sample's output is from another network's, `[B]`, to distil by.

        For probabilities p and q that is KL(p ‖ q); it is 0 where both agree.

        Raises:
            ConfigError: the task has none.
        """
        raise ConfigError(
            f"the task '{self.name}' has no distance between outputs: set distill to 0, or choose "
            "a criterion that does not compare outputs"
        )

    @property
    def has_divergence(self) -> bool:
        """Whether a network can learn from another one's outputs."""
        return type(self).divergence is not Task.divergence

    def answers(self, output: Tensor) -> Tensor | None:
        """Return the answers as whole numbers from 0, `[B, …]`; None for real values."""
        return None


tasks: Registry[type[Task]] = Registry("task", "shoal.tasks")

T = TypeVar("T", bound=type[Task])


def register_task(name: str) -> Callable[[T], T]:
    """Return a decorator that makes a subclass of `Task` known by a name, as `--task name`.

    Raises:
        ConfigError: the name is taken.

    Example:
        >>> import shoal
        >>> from shoal.tasks import find_task
        >>> @shoal.register_task("letters")
        ... class Letters(type(find_task("classify"))):
        ...     quality_name = "letters right"
        >>> find_task("letters").quality_name
        'letters right'
    """

    def bind(cls: T) -> T:
        cls.name = name
        return tasks.register(name)(cls)  # type: ignore[return-value]

    return bind


def find_task(task: str | type[Task] | Task = "classify", **options: Any) -> Task:
    """Return a task by its name, as `path/file.py:Name` or `package.module:Name`, or as it is.

    Options may follow a name, as in "segment?ignore_index=0"; those by keyword win over them.

    Raises:
        NameNotFoundError: no task has that name; tells the nearest.
        ConfigError: it does not take these options, or what is named is no task.

    Example:
        >>> from shoal.tasks import find_task
        >>> find_task("segment?ignore_index=0").quality_name
        'mIoU'
    """
    if isinstance(task, Task):
        return type(task)(**{**task.options.to_dict(), **options}) if options else task
    cls, written = tasks.find(task) if isinstance(task, str) else (task, {})
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"'{task}' is not a task: name a subclass of shoal.Task")
    missing = sorted(cls.__abstractmethods__)
    if missing:
        raise ConfigError(
            f"the task '{cls.name}' lacks {', '.join(missing)}: define what shoal.Task leaves open"
        )
    given = {**written, **options}
    assert_takes(f"the task '{cls.name}'", cls.Options, given)
    return cls(**given)


# ---------------------------------------------------------------------- what tasks share


def at_least_fp32(values: Tensor) -> Tensor:
    """Return values in fp32 or better: a softmax in half precision loses digits."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def needs_target(target: Any) -> Tensor:
    """Return the target as a tensor that can be computed with; `DataError` if it is none."""
    if target is None:
        raise DataError("the batches have no target: let the loader yield (inputs, labels)")
    if not isinstance(target, Tensor):
        raise DataError(
            f"the target is a {type(target).__name__} and not a tensor: let the loader yield a "
            "tensor of labels or values, or give loss= and evaluate= of your own for such targets"
        )
    if target.is_complex():
        raise DataError(f"targets are of type {target.dtype}: give whole or real numbers")
    # PyTorch stores these and computes hardly anything with them.
    return target.long() if target.dtype in (torch.uint16, torch.uint32, torch.uint64) else target


def assert_has_gradient(loss: Tensor) -> None:
    """Raise `ConfigError` if no weight's gradient can be had of a loss."""
    if not loss.requires_grad:
        raise ConfigError(
            "the loss has no gradient: the model's forward pass switches gradients off "
            "(torch.no_grad, inference_mode or detach), or all that the output depends on is "
            "frozen: remove that from its code to train or to use a criterion of gradients"
        )


def losses_of(task: Task, output: Any, target: Any, size: int, smoothing: float = 0.0) -> Tensor:
    """Return the loss of each of `size` samples, `[B]`; a loss of all of them is that of each.

    Raises:
        TrainingError: a loss of the user's has another form.
    """
    losses = task.losses(output, target, smoothing)
    if isinstance(losses, Tensor) and losses.shape == (size,):
        return losses
    if isinstance(losses, Tensor) and losses.numel() == 1 and losses.ndim <= 1:
        return losses.reshape(1).expand(size)
    raise TrainingError(
        f"the loss function returned {_spelled(losses)}: return the mean over the batch (a tensor "
        f"of one element) or one loss per sample ({size} here)"
    )


def hits_of(task: Task, output: Any, target: Any, size: int) -> Tensor:
    """Return the share of hits of each of `size` samples, `[B]`.

    Raises:
        TrainingError: a task of the user's gives something else.
    """
    hits = task.hits(output, target)
    if isinstance(hits, Tensor) and hits.shape == (size,):
        return hits
    raise TrainingError(
        f"hits of the task '{task.name}' returned {_spelled(hits)}: return the share of each "
        f"sample's answers that is right, a tensor [{size}] here"
    )


def rows_of(task: Task, output: Any, target: Any, size: int) -> Tensor:
    """Return what each of `size` samples adds to the quality, `[B, k]`, on the CPU.

    Raises:
        TrainingError: a task of the user's gives something else.
    """
    rows = task.rows(output, target)
    if isinstance(rows, Tensor) and rows.ndim == 2 and len(rows) == size:
        return rows.cpu()
    raise TrainingError(
        f"rows of the task '{task.name}' returned {_spelled(rows)}: return what each sample adds "
        f"to the quality, a tensor [{size}, k] here"
    )


def width_of(task: Task, rows: Iterable[Tensor]) -> int:
    """Return how many columns the rows of all batches have, 0 without a batch.

    Raises:
        TrainingError: they differ, in a task of the user's.
    """
    widths = {piece.shape[1] for piece in rows}
    if len(widths) > 1:
        raise TrainingError(
            f"rows of the task '{task.name}' have {min(widths)} columns for one batch and "
            f"{max(widths)} for another: return as many for every batch"
        )
    return max(widths, default=0)


def quality_of(task: Task, rows: Tensor) -> float:
    """Return the quality in points of all samples' rows, `[N, k]`.

    Raises:
        ConfigError: a task of the user's gives no finite number.
    """
    return as_points(task.quality(rows), f"quality of the task '{task.name}'")


def as_points(found: Any, what: str) -> float:
    """Return a quality as a number; `ConfigError` says `what` returned another thing."""
    single = getattr(found, "size", 1) == 1 and hasattr(found, "item")  # of NumPy
    if single or (isinstance(found, Tensor) and found.numel() == 1):
        found = found.item()
    if not isinstance(found, bool) and isinstance(found, int | float) and math.isfinite(found):
        return float(found)
    raise ConfigError(
        f"{what} returned {_spelled(found)}: let it return the quality as a number in points, "
        "higher is better"
    )


def _spelled(found: Any) -> str:
    """Return in short what a user's function returned."""
    if isinstance(found, Tensor):
        return f"a tensor of shape {list(found.shape)}"
    return one_line(repr(found), limit=60)


def per_sample(values: Tensor) -> Tensor:
    """Return the mean of each sample's values, `[B]`."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values
