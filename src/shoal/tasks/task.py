"""What a task is: what a network is for. It says what loss and quality are, and checks both sides.

The quality of a network is computed from what each sample adds to it, so that it depends neither on
batches nor on the number of processes, and holds for measures that are no means over samples (mean
average precision, mean intersection over union, R²).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, DataError, TrainingError
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
        return self.hits(output, target)[:, None].double()

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
    given = {**written, **options}
    assert_takes(f"the task '{cls.name}'", cls.Options, given)
    return cls(**given)


# ---------------------------------------------------------------------- what tasks share


def at_least_fp32(values: Tensor) -> Tensor:
    """Return values in fp32 or better: a softmax in half precision loses digits."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def needs_target(target: Any) -> Tensor:
    """Return the target; `DataError` if there is none, or it is no tensor."""
    if target is None:
        raise DataError("the batches have no target: let the loader yield (inputs, labels)")
    if not isinstance(target, Tensor):
        raise DataError(
            f"the target is a {type(target).__name__} and not a tensor: give loss= and evaluate= "
            "of your own for such targets"
        )
    return target


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
    kind = type(losses).__name__
    given = f"of shape {list(losses.shape)}" if isinstance(losses, Tensor) else kind
    raise TrainingError(
        f"the loss function returned {given}: return the mean over the batch (a tensor of one "
        f"element) or one loss per sample ({size} here)"
    )


def per_sample(values: Tensor) -> Tensor:
    """Return the mean of each sample's values, `[B]`."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values
