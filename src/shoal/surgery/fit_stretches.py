"""Fit layers to stretches: what the network, or a reference, computes there is the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.hooks import RemovableHandle

from shoal.data.batch import Batch, sample_keys
from shoal.errors import ConfigError
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.network.runner import Tap, listen
from shoal.network.stretches import Stretch
from shoal.passes.batches import Batches
from shoal.passes.observe import observe
from shoal.surgery.fit_conv import FittedLayer, LayerMoments, TooFewPositions

__all__ = ["check_ridge", "fit_stretches"]

_PASS_BYTES = 1 << 30  # of matrices held during one pass; solving one of them comes on top


def fit_stretches(
    network: Network,
    stretches: Sequence[Stretch],
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    ridge: float | None = None,
    reference: tuple[Network, Mapping[str, fx.Node]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    leave_out: bool = False,
) -> dict[str, FittedLayer]:
    """Fit one layer to each stretch, in one pass over the data where memory allows.

    The matrices of stretches that share a pass take at most 1 GiB, or those of a single stretch.

    Args:
        network: gives the inputs of the stretches.
        stretches: of this network as it is now.
        loader: the data, unshuffled and without augmentation.
        samples: use this many samples only.
        ridge: as `LayerMoments.solve` takes it.
        reference: another network and, by the stretches' names, its nodes that give the targets;
            None takes the network's own.
        progress: called with the batches done and their total, for each pass anew.
        leave_out: leave out stretches that there are too few samples for.

    Returns:
        The fitted layers by name.

    Raises:
        TooFewPositions: there are too few samples for a stretch.
        ConfigError: `ridge` is negative.
        DataError: the loader is empty.
        TrainingError: activations are not finite.
    """
    check_ridge(ridge)
    expected = Batches(loader, samples=samples).expected
    found: dict[str, FittedLayer] = {}
    for group in _groups(stretches):
        moments = {s.name: LayerMoments(s.shape, name=s.name, samples=expected) for s in group}
        observer = _StretchObserver(group, moments, reference)
        observe(network, loader, [observer], samples=samples, progress=progress)
        for name in list(moments):
            try:
                found[name] = moments.pop(name).solve(ridge)
            except TooFewPositions:
                if not leave_out:
                    raise
    return found


def check_ridge(ridge: float | None) -> None:
    """Raise `ConfigError` unless `ridge` is None or a number from 0."""
    if ridge is not None and not ridge >= 0.0:
        raise ConfigError(f"ridge is {ridge}: give a number from 0, or leave it out")


def _groups(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    """Share the stretches among passes so that their matrices fit into memory together."""
    groups: list[list[Stretch]] = []
    held = 0
    for stretch in stretches:
        need = stretch.shape.fit_bytes
        if not groups or held + need > _PASS_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(stretch)
        held += need
    return groups


class _StretchObserver:
    """Feeds what goes into and comes out of each stretch to its moments.

    With a reference, that network runs on each batch first, and its values are the outputs.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        moments: Mapping[str, LayerMoments],
        reference: tuple[Network, Mapping[str, fx.Node]] | None,
    ) -> None:
        self._stretches = stretches
        self._moments = moments
        self._reference = reference
        self._targets: dict[str, Tensor] = {}
        self._keys: Tensor | None = None

    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        """Listen to both ends of every stretch."""
        if self._reference is None:
            taps = [Tap(s.end, (s.start, s.end), self._adder(s.name)) for s in self._stretches]
            return [listen(network, taps)]
        model, ends = self._reference
        targets = [
            Tap(ends[s.name], (ends[s.name],), self._keeper(s.name)) for s in self._stretches
        ]
        inputs = [Tap(s.start, (s.start,), self._pairer(s.name)) for s in self._stretches]

        def run_reference(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with eval_mode(model), torch.no_grad():
                model(*args, **kwargs)

        return [
            listen(model, targets),
            listen(network, inputs),
            network.register_forward_pre_hook(run_reference, with_kwargs=True),
        ]

    def _adder(self, name: str) -> Callable[[Tensor, Tensor], None]:
        return lambda x, y: self._moments[name].add(x, y, self._keys)

    def _keeper(self, name: str) -> Callable[[Tensor], None]:
        def keep(y: Tensor) -> None:
            self._targets[name] = y

        return keep

    def _pairer(self, name: str) -> Callable[[Tensor], None]:
        return lambda x: self._moments[name].add(x, self._targets.pop(name), self._keys)

    def begin(self, index: int, batch: Batch) -> None:
        """Draw other positions from each sample."""
        self._keys = sample_keys(batch)

    def finish(self, samples: int, population: int | None) -> None:
        """Sum over processes."""
        for moments in self._moments.values():
            moments.finish()
