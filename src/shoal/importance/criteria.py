"""The registry of criteria and the one call that scores a network."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl

from shoal.errors import ConfigError, unknown_name
from shoal.importance.entropy import Entropy
from shoal.importance.per_latency import per_latency
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.passes.observe import Observer, observe
from shoal.registry import Registry

__all__ = [
    "ALL",
    "Criterion",
    "OnePass",
    "criteria",
    "criterion_for",
    "make_criterion",
    "score",
    "score_by",
]


@runtime_checkable
class OnePass(Observer, Protocol):
    """A criterion that needs one pass of the data and no more; several share one pass."""

    unit: str

    def scores(self) -> Scores:
        """Return the scores after the pass."""
        ...


@runtime_checkable
class ManyPasses(Protocol):
    """A criterion that runs the network as often as it needs."""

    unit: str

    def score(
        self,
        network: Network,
        loader: Iterable[Any],
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score the sites or blocks of `network` on the data."""
        ...


Criterion = OnePass | ManyPasses

criteria: Registry[Callable[..., Criterion]] = Registry("criterion", "shoal.criteria")
criteria.register("entropy")(Entropy)


ALL = sys.maxsize
"""All candidates are wanted; see `criterion_for`."""


def make_criterion(name: str, **options: Any) -> Criterion:
    """Return a fresh criterion.

    Args:
        name: of the registry; options may follow as in "l1?scope=global".
        **options: the criterion's own; they win over those in `name`.

    Raises:
        NameNotFoundError: no criterion has that name; tells the nearest.
        ConfigError: it does not take these options.
    """
    name, written = _parsed(name)
    options = {**written, **options}
    make = criteria[name]
    own = _parameters(name)
    if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
        for option in options:
            if option not in own:
                raise ConfigError(
                    f"the criterion '{name}' does not take these options: "
                    f"{unknown_name('option', option, own)}"
                )
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"the criterion '{name}' does not take these options: {error}") from error


def criterion_for(
    name: str, unit: str, *, seed: int = 0, wanted: int | None = None, how: str = "line"
) -> Criterion:
    """Return a fresh criterion that scores sites, or blocks, as a method needs it.

    Args:
        name: as in `make_criterion`. Where it scores the other unit and there is a twin for this
            one ("entropy" and "block_entropy"), that is taken.
        unit: "site" or "block".
        seed: for criteria that draw random numbers.
        wanted: how many of the lowest will be taken, for criteria that spare work on the others;
            `ALL` where all are to be ranked. None takes the criterion's default.
        how: for criteria that try it out: what takes a rectifier's place, "line" or "identity".

    Raises:
        NameNotFoundError: no criterion has that name; tells the nearest.
        ConfigError: it does not take the options in `name`, or cannot score this unit.
    """
    name, options = _parsed(name)
    if name in criteria and "unit" not in _parameters(name):
        twin = f"{unit}_{name}"
        if getattr(criteria[name], "unit", unit) != unit and twin in criteria:
            name = twin
    given = {"unit": unit, "seed": seed, "how": how, **options}
    if wanted is not None:
        given = {"keep": wanted, **given}
    known = _parameters(name)
    made = make_criterion(name, **{k: v for k, v in given.items() if k in known or k in options})
    if made.unit != unit:
        raise ConfigError(
            f"the criterion '{name}' scores {made.unit}s and the method removes {unit}s: choose "
            "another criterion"
        )
    return made


def _parsed(name: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of "name?option=value&option=value"."""
    bare, _, query = name.partition("?")
    options: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            options[key] = text
    return bare, options


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(criteria[name]).parameters


def score(
    network: Network,
    loader: Iterable[Any],
    criterion: str = "entropy",
    samples: int | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    saved_ms: Mapping[str, float] | None = None,
    **options: Any,
) -> Scores:
    """Score the sites or blocks of a network: the lowest matter least to the task.

    The network runs in eval mode on its own device; its training flags and state are left alone.
    Under several processes (torchrun, accelerate launch) the work is shared and every process
    returns what one process alone would have found.

    Args:
        network: what `shoal.capture` gave.
        loader: the data, unshuffled and without augmentation; shoal's own loaders see to that.
        criterion: a name of the registry, "entropy" for EASIER's; options may follow as in
            "l1?scope=global".
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
    """
    chosen = make_criterion(criterion, **options)
    scores = score_by(chosen, network, loader, samples=samples, progress=progress)
    return scores if saved_ms is None else per_latency(scores, saved_ms)


def score_by(
    criterion: Criterion,
    network: Network,
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    beside: Sequence[Observer] = (),
) -> Scores:
    """Score by a fresh criterion; arguments and errors as for `score`.

    Args:
        criterion: as `make_criterion` or `criterion_for` gives it.
        network: is left as it is.
        loader: the data.
        samples: use this many samples only.
        progress: called with the batches done and their total.
        beside: what else is to see the data, in the same pass where the criterion needs just one.
    """
    if isinstance(criterion, OnePass):
        observe(network, loader, [criterion, *beside], samples=samples, progress=progress)
        return criterion.scores()
    scores = criterion.score(network, loader, samples=samples, progress=progress)
    if beside:
        observe(network, loader, beside, samples=samples)
    return scores
