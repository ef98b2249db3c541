"""Make criteria by their names, and score a network by them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.importance.criterion import Criterion, Joint, OnePass, criteria
from shoal.importance.scores import Scores, per_latency
from shoal.network import Network
from shoal.options import options_of
from shoal.passes.batches import Data
from shoal.passes.observe import Observer, observe

__all__ = ["ALL", "criterion_for", "make_criterion", "score", "score_by", "score_several"]

ALL = sys.maxsize
"""All candidates are wanted; see `criterion_for`."""


def make_criterion(name: str, **options: Any) -> Criterion:
    """Return a fresh criterion.

    Args:
        name: of the registry, or `path/file.py:Name` or `package.module:Name` of a subclass of
            `Criterion`; options may follow as in "l1?scope=global".
        **options: the criterion's own; they win over those in `name`.

    Raises:
        NameNotFoundError: no criterion has that name; tells the nearest.
        ConfigError: it does not take these options, or the name is not of a criterion.
    """
    cls, written = _find(name)
    return _made(name, cls, {**written, **options})


def criterion_for(
    name: str, place: str, *, seed: int = 0, wanted: int | None = None, how: str = "line"
) -> Criterion:
    """Return a fresh criterion that scores sites, or blocks, as a method needs it.

    Args:
        name: as in `make_criterion`. Where it scores other places and its `twin` these, that one
            is taken ("entropy" and "block_entropy").
        place: "site" or "block".
        seed: for criteria that draw random numbers.
        wanted: how many of the lowest will be taken, for criteria that save work on the others;
            `ALL` where all are to be ranked. None takes the criterion's default.
        how: for criteria that try it out: what takes a rectifier's place, "line" or "identity".

    Raises:
        NameNotFoundError: no criterion has that name; tells the nearest.
        ConfigError: it does not take the options in `name`, or cannot score these places.
    """
    cls, written = _find(name)
    if cls.twin and cls.place != place and criteria[cls.twin].place == place:
        cls = criteria[cls.twin]
    offered = {"place": place, "seed": seed, "how": how}
    if wanted is not None:
        offered["keep"] = wanted
    asked = {option: value for option, value in offered.items() if option in cls.asks}
    made = _made(name, cls, {**asked, **written})
    if made.place != place:
        raise ConfigError(
            f"the criterion '{made.name}' scores {made.place}s and the method removes {place}s: "
            "choose another criterion"
        )
    return made


def _find(name: str) -> tuple[type[Criterion], dict[str, Any]]:
    cls, options = criteria.find(name)
    if not (isinstance(cls, type) and issubclass(cls, Criterion)):
        raise ConfigError(
            f"'{name}' is not a criterion: name a subclass of shoal.importance.Criterion"
        )
    return cls, options


def _made(name: str, cls: type[Criterion], options: Mapping[str, Any]) -> Criterion:
    known = [option.name for option in options_of(cls.Options)]
    unknown = next((option for option in options if option not in known), None)
    if unknown is not None:
        raise ConfigError(
            f"the criterion '{name.partition('?')[0]}' does not take these options: "
            f"{unknown_name('option', unknown, known)}"
        )
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
        every = type(group[0]).compute_together(group, network, data)
        found |= zip(map(id, group), every, strict=True)
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
    **options: Any,
) -> Scores:
    """Score the sites, blocks or stretches of a network: the lowest matter least to the task.

    The network runs in eval mode on its own device; its training flags and state are left alone.
    Under several processes (torchrun, accelerate launch) the work is shared and every process
    returns what one process alone would have found.

    Args:
        network: what `shoal.capture` gave.
        loader: the data, unshuffled and without augmentation; shoal's own loaders see to that.
        criterion: what `make_criterion` takes, "entropy" for EASIER's; or a fresh criterion.
        samples: use only this many samples; the scores then have standard errors and say whether
            the lowest is settled.
        progress: called with the batches done and their total.
        saved_ms: milliseconds that each removal saves, by name; the scores are divided by them.
        **options: the criterion's own, such as `zeros` and `pooling` of "entropy".

    Returns:
        A mapping from names to scores, in the order of the forward pass.

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
    chosen = criterion if isinstance(criterion, Criterion) else make_criterion(criterion, **options)
    scores = score_by(chosen, network, loader, samples=samples, progress=progress)
    return scores if saved_ms is None else per_latency(scores, saved_ms)
