"""What a criterion is, and the registry that names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from typing_extensions import override

from shoal import options as shoal_options
from shoal.data.batch import Batch
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.options import one_of, option
from shoal.passes.batches import Data
from shoal.passes.observe import Observer, observe
from shoal.registry import Registry

__all__ = [
    "METRICS",
    "Criterion",
    "Joint",
    "MetricOptions",
    "OnePass",
    "PlaceOptions",
    "criteria",
    "register_criterion",
]

METRICS = {"loss": "nats", "accuracy": "points"}
"""What a removal may cost, and the units."""


class Criterion(ABC):
    """Scores the places of one kind in a network; the lowest matter least to the task.

    A criterion that can gather its figures in one pass over the data extends `OnePass`; any other
    one implements `compute`. `register_criterion` gives it a name.

    Args:
        **options: those of its `Options`, by keyword.

    Raises:
        NameNotFoundError: it has no such option; tells the nearest.
        OptionError: a value makes no sense.

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

    @abstractmethod
    def compute(self, network: Network, data: Data) -> Scores:
        """Return the scores of the network's places, in the order of the forward pass.

        Args:
            network: must be left as it is.
            data: `data.batches(device)` gives this process's share. Sum over the processes with
                `shoal.distributed.sum_across`.
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
class MetricOptions(Criterion.Options):
    """By which figure a removal is judged."""

    metric: str = option(
        "loss",
        "loss scores the rise of the mean cross-entropy in nats, accuracy the points of accuracy "
        "lost.",
        check=one_of(*METRICS),
    )


class Joint(Criterion):
    """A criterion that shares its passes over the data with others.

    Attributes:
        needs: what it needs of the data. Those with equal needs are computed together, by the
            `compute_together` of the first.
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

    Args:
        name: what `shoal.score(criterion=…)` and `--criterion` call it.

    Raises:
        ConfigError: the name is taken.

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
