"""What a criterion is, what it says of each place, and the registry that names criteria."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, TypeVar

from typing_extensions import override

from shoal import options as shoal_options
from shoal.data.batch import Batch
from shoal.display import Shown
from shoal.errors import ConfigError, TrainingError
from shoal.network import Network
from shoal.options import one_of, option
from shoal.passes.batches import Data, Observer, observe
from shoal.registry import Registry
from shoal.tasks import Task, find_task

METRICS = {"loss": "nats", "accuracy": "points"}  # what a removal may cost, and the units


class Criterion(ABC):
    """Scores the places of one kind in a network; the lowest matter least to the task.

    A criterion that can gather its figures in one pass over the data extends `OnePass`; any other
    one implements `compute`. `register_criterion` gives it a name. It is made with the options of
    its `Options`, by keyword, and raises `NameNotFoundError` or `OptionError` for wrong ones.

    Attributes:
        name: as it was registered; else that of the class.
        place: what it scores, "site", "block" or "stretch"; where there is an option of that name,
            its value.
        unit: of its figures, for the heads of tables ("bits", "nats"); empty for plain numbers.
            Where there is an option `metric`, the unit of that.
        asks: which of its options a method fills in with its own, unless the user gave them:
            "place", "seed", "how" (a site is linearized) and "keep" (how many will be removed).
        twin: the criterion that scores the same of another kind of place, if there is one.
        options: its options.
        task: what the network is for, which says what its loss and its answers are.

    Example:
        >>> import shoal, torch
        >>> class Size(shoal.Criterion):
        ...     def compute(self, network, data):
        ...         modules = {b.name: network.get_submodule(b.name) for b in network.blocks}
        ...         sizes = {k: sum(p.numel() for p in m.parameters()) for k, m in modules.items()}
        ...         return shoal.Scores(self.name, sizes, samples=0)
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
        >>> shoal.score(net, [], Size()).lowest(1)
        ['layer1.0']
    """

    name: ClassVar[str] = ""
    place: str = "block"
    unit: str = ""
    asks: ClassVar[frozenset[str]] = frozenset()
    twin: ClassVar[str] = ""

    @dataclass(frozen=True, kw_only=True)
    class Options(shoal_options.Options):
        """A criterion's own options, each stated by `shoal.options.option`."""

    options: Options

    def __init_subclass__(cls) -> None:
        """Name a class that is not registered, such as one in a user's file, after itself."""
        super().__init_subclass__()
        cls.name = cls.__name__

    def __init__(self, **options: Any) -> None:
        self.options = self.Options.from_dict(options)
        self.place = getattr(self.options, "place", self.place)
        self.unit = METRICS.get(getattr(self.options, "metric", ""), self.unit)
        self.task = find_task()

    def of_task(self, task: Task) -> Self:
        """Return the criterion, to judge networks by what they are for."""
        self.task = task
        if getattr(self.options, "metric", "") == "loss":
            self.unit = task.loss_unit
        return self

    @abstractmethod
    def compute(self, network: Network, data: Data) -> Scores:
        """Return the scores of the network's places, in the order of the forward pass.

        Leave the network as it is. `data.batches(device)` gives this process's share of the data;
        sum over the processes with `shoal.distributed.sum_across`.
        """


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(Criterion.Options):
    """What is scored."""

    place: str = option(
        "block",
        "block drops a block, site puts the identity in the place of a rectifier.",
        check=one_of("block", "site"),
    )


@dataclass(frozen=True, kw_only=True)
class ScopeOptions(Criterion.Options):
    """How blocks of different stages compare."""

    scope: str = option(
        "stage",
        "stage divides each score by the mean of its stage, so that blocks of all stages can "
        "be ranked together; global compares the bare values, which follow the stage (Jordao "
        "et al. 2023, Figure 3) and so always pick the same one.",
        check=one_of("stage", "global"),
    )


@dataclass(frozen=True, kw_only=True)
class MetricOptions(Criterion.Options):
    """By which figure a removal is judged."""

    metric: str = option(
        "loss",
        "loss scores the rise of the task's mean loss (of a classifier, in nats), accuracy the "
        "percent of answers that are no longer right.",
        check=one_of(*METRICS),
    )


def judged_by(task: Task, metric: str) -> Task:
    """Return the task; `ConfigError` if it has no such metric."""
    if metric == "accuracy" and not task.has_hits:
        raise ConfigError(
            f"answers of the task '{task.name}' are not right or wrong, so there is no accuracy to "
            "lose: judge by 'loss'"
        )
    return task


class Joint(Criterion):
    """A criterion that shares its passes over the data with others.

    Those with equal `needs` of the data are computed together, by the first.
    """

    needs: Hashable

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        return self.compute_together([self], network, data)[0]

    @classmethod
    @abstractmethod
    def compute_together(
        cls, criteria: Sequence[Self], network: Network, data: Data
    ) -> list[Scores]:
        """Return the scores by several criteria with equal needs, in their order."""


class OnePass(Joint, Observer):
    """A criterion that needs a single pass over the data: an `Observer` that gives scores."""

    needs = "one pass"

    @override
    def begin(self, index: int, batch: Batch) -> None:
        pass

    @abstractmethod
    def scores(self) -> Scores:
        """Return the scores after the pass."""

    @classmethod
    @override
    def compute_together(
        cls, criteria: Sequence[Self], network: Network, data: Data
    ) -> list[Scores]:
        observe(network, data.loader, criteria, samples=data.samples, progress=data.progress)
        return [criterion.scores() for criterion in criteria]


criteria: Registry[type[Criterion]] = Registry("criterion", "shoal.criteria")

C = TypeVar("C", bound=type[Criterion])


def register_criterion(name: str) -> Callable[[C], C]:
    """Return a decorator that makes a subclass of `Criterion` known by a name.

    `shoal.score(criterion=…)` and `--criterion` then take it; a taken name is a `ConfigError`.

    Example:
        >>> import shoal
        >>> @shoal.register_criterion("first")
        ... class First(shoal.Criterion):
        ...     place = "site"
        ...
        ...     def compute(self, network, data):
        ...         places = {site.name: i for i, site in enumerate(network.sites)}
        ...         return shoal.Scores(self.name, places, samples=0)
    """

    def bind(cls: C) -> C:
        cls.name = name
        return criteria.register(name)(cls)  # type: ignore[return-value]

    return bind


@dataclass(frozen=True, eq=False, repr=False)  # equal to any mapping with the same items
class Scores(Mapping[str, float], Shown):
    """Scores by the name of the site or block; the lowest goes first.

    A score that is NaN raises `TrainingError`; what must not be removed has an infinite one.

    Attributes:
        criterion: the name of the criterion.
        by_name: the scores, in the order of the forward pass.
        samples: the number of samples they were computed from.
        standard_errors: of each score as an estimate of the score on all data; 0 where all data
            was used, empty where the criterion gives none.
        settled: whether the lowest score is below the second by more than twice the standard
            error of their difference; None where the criterion gives no standard errors.
        details: more about each site or block, as JSON values.
        unit: of the scores ("bits", "nats", "points"); empty for plain numbers.

    Example:
        >>> import shoal
        >>> scores = shoal.Scores("entropy", {"relu": 0.9, "relu_1": 0.1}, samples=100, unit="bits")
        >>> scores.lowest(1), scores["relu"], scores.title
        (['relu_1'], 0.9, 'entropy, bits')
    """

    criterion: str
    by_name: Mapping[str, float]
    samples: int
    standard_errors: Mapping[str, float] = field(default_factory=dict)
    settled: bool | None = None
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unit: str = ""

    shown_by: ClassVar[str] = "shoal.report.notebook:scores_html"

    def __repr__(self) -> str:
        """Return the lowest scores in one line."""
        lowest = ", ".join(f"{name} {self[name]:.4g}" for name in self.lowest(3))
        more = ", …" if len(self) > 3 else ""
        return (
            f"<scores by {self.title}, the lowest first: {lowest}{more} ({len(self)} places, "
            f"{self.samples} samples)>"
        )

    def __post_init__(self) -> None:
        """Refuse NaN: it is neither low nor high, so the order would follow from chance."""
        for name, value in self.by_name.items():
            if math.isnan(value):
                raise TrainingError(
                    f"the {self.criterion} score of '{name}' is NaN: the network's weights or its "
                    "data are broken; check them before scoring"
                )

    @property
    def title(self) -> str:
        """The criterion and the unit of its scores, for the head of a table: "entropy, bits"."""
        return f"{self.criterion}, {self.unit}" if self.unit else self.criterion

    def __getitem__(self, name: str) -> float:
        return self.by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_name)

    def __len__(self) -> int:
        return len(self.by_name)

    def lowest(self, count: int = 1) -> list[str]:
        """Return the `count` names with the lowest scores, lowest first; ties by forward order."""
        if count < 1:
            raise ConfigError(f"cannot pick {count} names: give at least 1")
        return sorted(self.by_name, key=self.by_name.__getitem__)[:count]

    def worth_removing(self) -> list[str]:
        """Return all names, lowest first, without the infinite.

        Their removal saves no latency, or leaves a network that computes NaN.
        """
        return [name for name in self.lowest(len(self) or 1) if math.isfinite(self[name])]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "criterion": self.criterion,
            "unit": self.unit,
            "samples": self.samples,
            "settled": self.settled,
            "values": dict(self.by_name),
            "standard_errors": dict(self.standard_errors),
            "details": {name: dict(detail) for name, detail in self.details.items()},
        }


def broken_last(values: Mapping[str, float], whole: float) -> dict[str, float]:
    """Return scores of removals, infinite where the network without the place is not finite.

    `whole` is a figure of the network itself; `TrainingError` if that is not finite.
    """
    if not math.isfinite(whole):
        raise TrainingError(
            "what the network itself gives is NaN or infinite: its weights or its data are broken; "
            "check them before scoring"
        )
    return {name: or_infinite(value) for name, value in values.items()}


def or_infinite(value: float) -> float:
    """Return a number, or infinity for what is none."""
    return value if math.isfinite(value) else math.inf


def per_latency(scores: Scores, saved_ms: Mapping[str, float]) -> Scores:
    """Divide each score by the measured latency that the removal saves (Practise, CVPR 2023).

    A negative score, of a removal that does good, is multiplied instead: the more it saves, the
    earlier it goes. What saves nothing goes last: its score is infinite.
    `saved_ms` is by name, as `shoal.block_costs` measures it; a scored name without one is a
    `ConfigError`.
    """
    values = {}
    for name, score in scores.items():
        if name not in saved_ms:
            raise ConfigError(
                f"the latency that '{name}' saves was not measured: measure all that is scored"
            )
        saved = saved_ms[name]
        values[name] = math.inf if saved <= 0 else score / saved if score >= 0 else score * saved
    errors = {
        name: error * abs(values[name] / scores[name])
        for name, error in scores.standard_errors.items()
        if scores[name] != 0 and math.isfinite(values[name])
    }
    details = {n: {**scores.details.get(n, {}), "saved_ms": saved_ms[n]} for n in scores}
    return replace(
        scores, by_name=values, standard_errors=errors, settled=None, details=details,
        unit=f"{scores.unit} per ms".strip(),
    )  # fmt: skip
