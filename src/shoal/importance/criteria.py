"""The registry of criteria and the one call that scores a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from shoal.errors import ConfigError
from shoal.importance.entropy import Entropy
from shoal.importance.observe import Observer, observe
from shoal.importance.scores import Scores
from shoal.network import Network
from shoal.registry import Registry

__all__ = ["Criterion", "OnePass", "criteria", "make_criterion", "score"]


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

criteria: Registry[Callable[..., Criterion]] = Registry("criterion")
criteria.register("entropy")(Entropy)


def make_criterion(name: str, **options: Any) -> Criterion:
    """Return a fresh criterion.

    Raises:
        NameNotFoundError: no criterion has that name; tells the nearest.
        ConfigError: it does not take these options.
    """
    make = criteria[name]
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(f"the criterion '{name}' does not take these options: {error}") from error


def score(
    network: Network,
    loader: Iterable[Any],
    criterion: str = "entropy",
    samples: int | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Scores:
    """Score the sites or blocks of a network: the lowest matter least to the task.

    The network runs in eval mode on its own device; its training flags and state are left alone.
    Under several processes (torchrun, accelerate launch) the work is shared and every process
    returns what one process alone would have found.

    Args:
        network: what `shoal.capture` gave.
        loader: the data, unshuffled and without augmentation; shoal's own loaders see to that.
        criterion: a name of the registry, "entropy" for EASIER's.
        samples: use only this many samples; the scores then have standard errors and say whether
            the lowest is settled.
        progress: called with the batches done and their total.
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
    if isinstance(chosen, OnePass):
        observe(network, loader, [chosen], samples=samples, progress=progress)
        return chosen.scores()
    return chosen.score(network, loader, samples=samples, progress=progress)
