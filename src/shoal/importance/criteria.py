"""Make criteria by their names, and score a network by them: by one, or by what several vote."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from typing_extensions import override

from shoal.errors import ConfigError
from shoal.importance.criterion import (
    Criterion,
    Joint,
    OnePass,
    PlaceOptions,
    Scores,
    criteria,
    per_latency,
    register_criterion,
)
from shoal.network import Network
from shoal.options import assert_takes, one_of, option
from shoal.passes.batches import Data, Observer, observe
from shoal.tasks import Task, find_task

ALL = sys.maxsize  # all candidates are wanted; see `criterion_for`


def make_criterion(name: str, **options: Any) -> Criterion:
    """Return a fresh criterion, by its name in the registry or as `path/file.py:Name`.

    Options may follow the name, as in "l1?scope=global"; those given by keyword win over them.
    `package.module:Name` of a subclass of `Criterion` is a name, too.

    Raises:
        NameNotFoundError: no criterion has that name; tells the nearest.
        ConfigError: it does not take these options, or the name is not of a criterion.
    """
    cls, written = find_criterion(name)
    return _made(name, cls, {**written, **options})


def criterion_for(
    name: str,
    place: str,
    *,
    seed: int = 0,
    wanted: int | None = None,
    how: str = "line",
    task: Task | None = None,
) -> Criterion:
    """Return a fresh criterion that scores sites, or blocks, as a method needs it.

    Args:
        name: as in `make_criterion`, with its errors. Where it scores other places and its `twin`
            these, that one is taken ("entropy" and "block_entropy").
        place: "site" or "block"; a criterion that cannot score it is a `ConfigError`.
        seed: for criteria that draw random numbers.
        wanted: how many of the lowest will be taken, for criteria that save work on the others;
            `ALL` where all are to be ranked. None takes the criterion's default.
        how: for criteria that try it out: what takes a rectifier's place, "line" or "identity".
        task: what the network is for; None is classification. A criterion that cannot judge by it
            is a `ConfigError`.
    """
    cls, written = find_criterion(name)
    if cls.twin and cls.place != place and criteria[cls.twin].place == place:
        cls = criteria[cls.twin]
    offered = {"place": place, "seed": seed, "how": how, "keep": wanted}
    asked = {key: value for key, value in offered.items() if key in cls.asks and value is not None}
    made = _made(name, cls, {**asked, **written})
    if made.place != place:
        raise ConfigError(
            f"the criterion '{made.name}' scores {made.place}s and the method removes {place}s: "
            "choose another criterion"
        )
    return made if task is None else made.of_task(task)


def find_criterion(name: str) -> tuple[type[Criterion], dict[str, Any]]:
    """Return the class that a name, as `make_criterion` takes it, is of, and its options in it."""
    cls, options = criteria.find(name)
    if not (isinstance(cls, type) and issubclass(cls, Criterion)):
        raise ConfigError(
            f"'{name}' is not a criterion: name a subclass of shoal.importance.Criterion"
        )
    return cls, options


def _made(name: str, cls: type[Criterion], options: Mapping[str, Any]) -> Criterion:
    assert_takes(f"the criterion '{name.partition('?')[0]}'", cls.Options, options)
    return cls(**options)


def score_several(
    network: Network,
    loader: Iterable[Any],
    chosen: Sequence[Criterion],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """Score by several fresh criteria, in their order; those with equal `needs` share their passes.

    Other arguments and errors are those of `shoal.score`. `progress` starts from 0 for each pass.
    """
    data = Data(loader, samples, progress)
    joint: dict[Hashable, list[Joint]] = {}
    found: dict[int, Scores] = {}
    for criterion in chosen:
        if isinstance(criterion, Joint):
            joint.setdefault(criterion.needs, []).append(criterion)
        else:
            found[id(criterion)] = criterion.compute(network, data)
    for group in joint.values():
        found |= zip(map(id, group), group[0].compute_together(group, network, data), strict=True)
    return [_with_unit(found[id(criterion)], criterion) for criterion in chosen]


def score_by(
    criterion: Criterion,
    network: Network,
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    beside: Sequence[Observer] = (),
) -> Scores:
    """Score by a fresh criterion; other arguments and errors are those of `shoal.score`.

    What is `beside` it observes the data, in the same pass where the criterion needs just one.
    """
    if isinstance(criterion, OnePass):
        observe(network, loader, [criterion, *beside], samples=samples, progress=progress)
        return _with_unit(criterion.scores(), criterion)
    scores = criterion.compute(network, Data(loader, samples, progress))
    if beside:
        observe(network, loader, beside, samples=samples, progress=progress)
    return _with_unit(scores, criterion)


def _with_unit(scores: Scores, criterion: Criterion) -> Scores:
    return replace(scores, unit=scores.unit or criterion.unit)


def score(
    network: Network,
    loader: Iterable[Any],
    criterion: str | Criterion = "entropy",
    samples: int | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    saved_ms: Mapping[str, float] | None = None,
    task: str | Task = "classify",
    **options: Any,
) -> Scores:
    """Score the sites, blocks or stretches of a network: the lowest matter least to the task.

    Scores come by name, in the order of the forward pass. The network runs in eval mode on its own
    device; its training flags and state are left alone. Under several processes (torchrun,
    accelerate launch) the work is shared and every process returns what one alone would have found.

    Args:
        network: what `shoal.capture` gave.
        loader: the data, unshuffled and without augmentation; shoal's own loaders see to that.
        criterion: what `make_criterion` takes, "entropy" for EASIER's; or a fresh criterion.
        samples: use only this many; the scores then have standard errors and say whether the lowest
            is settled.
        progress: called with the batches done and their total.
        saved_ms: milliseconds that each removal saves, by name; the scores are divided by them.
        task: what the network is for, for criteria that need labels or compare outputs; a name, or
            a `Task` as `shoal.tasks.with_own` makes one of a loss of your own.
        **options: the criterion's own, such as `zeros` and `pooling` of "entropy".

    Raises:
        NameNotFoundError: there is no such criterion.
        ConfigError: an option is wrong, or the network has nothing to score.
        DataError: the loader is empty.
        TrainingError: the network computes NaN.

    Example:
        >>> import shoal, torch
        >>> images = torch.randn(64, 1, 8, 8)
        >>> net = shoal.capture(shoal.models.digits_resnet(), images)

        >>> scores = shoal.score(net, [images], "entropy")
        >>> len(scores), scores.unit, len(scores.lowest(3))
        (13, 'bits', 3)
    """
    if isinstance(criterion, Criterion) and options:
        raise ConfigError(
            f"{', '.join(options)}: options are for a criterion by its name, and this one is made "
            "already: give them when making it"
        )
    chosen = criterion if isinstance(criterion, Criterion) else make_criterion(criterion, **options)
    chosen = chosen.of_task(find_task(task))
    scores = score_by(chosen, network, loader, samples=samples, progress=progress)
    return scores if saved_ms is None else per_latency(scores, saved_ms)


@register_criterion("consensus")
class Consensus(Criterion):
    """Scores by the sum of ranks that several criteria give (after Duarte et al. 2024).

    The lowest score of a criterion has rank 0; equal ones share their mean rank. What a criterion
    does not score (a block without a rectifier, by its entropy) is left out. The criteria are named
    as a sequence, or as one text with plus signs, commas or spaces between them.
    """

    asks = frozenset({"place", "seed", "how"})

    @dataclass(frozen=True, kw_only=True)
    class Options(PlaceOptions):
        """Which criteria vote, and on what."""

        criteria: str = option("cka+lesion", "The criteria that vote, with a plus between them.")
        seed: int = option(0, "For criteria that draw random numbers.")
        how: str = option(
            "line",
            "For criteria that try it out: what takes a rectifier's place.",
            check=one_of("line", "identity"),
        )

    options: Options

    def __init__(self, *, criteria: Sequence[str] | str | None = None, **options: Any) -> None:
        if criteria is not None:
            options["criteria"] = criteria if isinstance(criteria, str) else "+".join(criteria)
        super().__init__(**options)
        self.names = re.sub(r"[+,]", " ", self.options.criteria).split()
        if len(self.names) < 2:
            raise ConfigError("a consensus needs two criteria or more, such as criteria=cka+lesion")
        seed, how = self.options.seed, self.options.how
        self.members = [
            criterion_for(name, self.place, seed=seed, wanted=ALL, how=how) for name in self.names
        ]

    @override
    def of_task(self, task: Task) -> Self:
        for member in self.members:
            member.of_task(task)
        return super().of_task(task)

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        every = score_several(
            network, data.loader, self.members, samples=data.samples, progress=data.progress
        )
        common = [name for name in every[0] if all(name in scores for scores in every)]
        ranks = [_ranks({name: scores[name] for name in common}) for scores in every]
        sums = {name: sum(rank[name] for rank in ranks) for name in common}
        details = {
            name: {own: scores[name] for own, scores in zip(self.names, every, strict=True)}
            for name in common
        }
        return Scores(self.name, sums, max(s.samples for s in every), details=details)


def _ranks(values: Mapping[str, float]) -> dict[str, float]:
    """Return each value's rank from 0; equal values share their mean rank."""
    return {
        name: sum(other < value for other in values.values())
        + (sum(other == value for other in values.values()) - 1) / 2
        for name, value in values.items()
    }
