"""Fit layers to stretches: what the network, or a reference, computes there is the target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from shoal.data.batch import Batch, sample_keys
from shoal.errors import OptionError
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.network.runner import Tap, listen
from shoal.network.stretches import Stretch
from shoal.passes.batches import Batches
from shoal.passes.observe import observe
from shoal.surgery.fit_conv import FittedLayer, LayerMoments

__all__ = ["fit_stretches"]

_PASS_BYTES = 1 << 30  # of matrices held during one pass; solving one of them comes on top


def fit_stretches(
    network: Network,
    stretches: Sequence[Stretch],
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    ridge: float | None = None,
    reference: Network | None = None,
    progress: Callable[[int, int], None] | None = None,
    leave_out: bool = False,
) -> dict[str, FittedLayer]:
    """Fit one layer to each stretch, in one pass over the data where memory allows.

    The matrices of one pass take at most 1 GiB, unless a single stretch needs more.

    Args:
        network: gives the inputs of the stretches.
        stretches: of this network as it is now.
        loader: the data, unshuffled and without augmentation.
        samples: use this many samples only.
        ridge: as `LayerMoments.solve` takes it.
        reference: another network with stretches of these names, which gives the targets; None
            takes the network itself.
        progress: called with the batches done and their total, for each pass.
        leave_out: skip stretches that there are too few samples for.

    Returns:
        The fitted layers by name.

    Raises:
        ConfigError: `ridge` is negative, or there are too few samples for a stretch.
        DataError: the loader is empty.
        TrainingError: activations are not finite.
    """
    if ridge is not None and not ridge >= 0.0:
        raise OptionError("ridge", ridge, "a number from 0, or None")
    expected = Batches(loader, samples=samples).expected
    found: dict[str, FittedLayer] = {}
    for group in _groups(stretches):
        moments = {s.name: LayerMoments(s.shape, name=s.name, samples=expected) for s in group}
        observer = _StretchObserver(group, moments, reference)
        observe(network, loader, [observer], samples=samples, progress=progress)
        for name in list(moments):
            one = moments.pop(name)
            if one.determined or not leave_out:
                found[name] = one.solve(ridge)
    return found


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

    A reference runs on each batch first, and its values are the outputs.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        moments: Mapping[str, LayerMoments],
        reference: Network | None,
    ) -> None:
        self._stretches = stretches
        self._moments = moments
        self._reference = reference
        self._targets: dict[str, Tensor] = {}
        self._keys: Tensor | None = None

    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        """Listen to both ends of every stretch."""
        named, model = {s.name: s for s in self._stretches}, self._reference
        if model is None:
            taps = [Tap(s.end, (s.start, s.end), partial(self._add, n)) for n, s in named.items()]
            return [listen(network, taps)]
        ends = {name: model.stretch(name).end for name in named}
        keep = self._targets.__setitem__
        targets = [Tap(end, (end,), partial(keep, name)) for name, end in ends.items()]
        inputs = [Tap(s.start, (s.start,), partial(self._add, n)) for n, s in named.items()]

        def run_reference(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with eval_mode(model), torch.no_grad():
                model(*args, **kwargs)

        return [
            listen(model, targets),
            listen(network, inputs),
            network.register_forward_pre_hook(run_reference, with_kwargs=True),
        ]

    def _add(self, name: str, x: Tensor, y: Tensor | None = None) -> None:
        target = self._targets.pop(name) if y is None else y
        self._moments[name].add(x, target, self._keys)

    def begin(self, index: int, batch: Batch) -> None:
        """Take the samples' keys, by which positions are drawn."""
        self._keys = sample_keys(batch)

    def finish(self, samples: int, population: int | None) -> None:
        """Sum over processes."""
        for moments in self._moments.values():
            moments.finish()
