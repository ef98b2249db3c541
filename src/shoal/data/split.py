"""Seeded, stratified choices of samples; every data source makes its parts with these.

`labels` are the classes of all samples, `[N]`. The same seed gives the same choice in every
process, run and version of Python; choices of different purposes are independent. scikit-learn's
`train_test_split(stratify=...)` does not serve: it leaves a rare class out of one side (of classes
of 100, 100 and 3 images, a tenth has 11, 10 and 0), and refuses to split off fewer samples than
there are classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.errors import ConfigError, DataError, OptionError
from shoal.seeds import generator

Indices = NDArray[np.int64]


def shuffled(indices: Indices, *, seed: int, purpose: str) -> Indices:
    """Return `indices` in a random order that depends on seed and purpose only."""
    return generator(seed, purpose).permutation(indices)


def stratified_counts(sizes: Sequence[int], total: int) -> Indices:
    """Share `total` samples among classes in proportion to their sizes, by largest remainder.

    Every count is its exact share rounded down or up; ties go to the class that comes first.
    """
    shares = [Fraction(size * total, sum(sizes)) for size in sizes]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(sizes)), key=lambda c: counts[c] - shares[c])
    for chosen in by_remainder[: total - sum(counts)]:
        counts[chosen] += 1
    return np.asarray(counts, dtype=np.int64)


def stratified_subset(labels: Indices, count: int, *, seed: int, purpose: str) -> Indices:
    """Return the sorted positions of `count` samples, all if there are fewer, in proportion."""
    if count < 1:
        raise OptionError("count", count, "at least 1 sample")
    if count >= len(labels):
        return np.arange(len(labels))
    members = _members(labels)
    return _draw(members, stratified_counts([*map(len, members)], count), seed, purpose)


def random_split(count: int, wanted: int, seed: int) -> tuple[Indices, Indices]:
    """Return `wanted` of `count` positions and the others, as PyTorch's `random_split` draws them.

    The last ones of a permutation after `torch.manual_seed(seed)`, in that order.
    """
    order: Indices = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
    return order[count - wanted :], order[: count - wanted]


def stratified_split(
    labels: Indices, fraction: float, *, seed: int, purpose: str, classes: Sequence[str] = ()
) -> tuple[Indices, Indices]:
    """Split samples into about `fraction` and the rest, both sorted and with every class."""
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"the {purpose} fraction is {fraction}: give a number between 0 and 1")
    members = _members(labels)
    for positions in members:
        if len(positions) < 2:
            label = int(labels[positions[0]])
            raise DataError(
                f"class '{classes[label] if classes else label}' has only 1 image to share between "
                f"the {purpose} split and the rest: add images of it, or a folder of its own for "
                "that split"
            )
    sizes = [*map(len, members)]
    counts = stratified_counts(sizes, round(fraction * len(labels)))
    # A rare class keeps at least one sample on either side.
    part = _draw(members, np.clip(counts, 1, np.asarray(sizes) - 1), seed, purpose)
    return part, np.setdiff1d(np.arange(len(labels)), part)


def _members(labels: Indices) -> list[Indices]:
    """Return the positions of each class that occurs, in ascending order of the classes."""
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _draw(members: list[Indices], counts: Indices, seed: int, purpose: str) -> Indices:
    """Return the sorted positions of `counts[c]` random members of each class."""
    rng = generator(seed, purpose)
    # The first of a permutation: a smaller subset of the same seed lies within a larger one.
    parts = [rng.permutation(m)[:n] for m, n in zip(members, counts, strict=True)]
    return np.sort(np.concatenate(parts))
