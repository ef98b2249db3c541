"""Collapse: put one fitted layer in the place of a residual block or of a stretch of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shoal.data.batch import Batch, sample_keys
from shoal.errors import ConfigError, OptionError
from shoal.modes import eval_mode
from shoal.network import Network, Operation
from shoal.network.rewrite import free_path, remove_dead_, replace_stretch_
from shoal.network.runner import Tap, listen
from shoal.network.stretches import Stretch, with_kernel
from shoal.passes.batches import Batches, Observer, observe
from shoal.surgery.fit_conv import FittedLayer, LayerMoments
from shoal.surgery.linearize import named_once

_PASS_BYTES = 3 << 29  # of matrices held during one pass; solving one of them comes on top


def collapse_(
    network: Network,
    names: Sequence[str] | str,
    loader: Iterable[Any],
    *,
    kernel_size: int | None = None,
    samples: int | None = None,
    ridge: float | None = None,
) -> list[Operation]:
    """Replace blocks or stretches by one layer each, fitted by ridge regression, in place.

    The new layer, "collapsed" below the block's path, gives what the block gave on the data as
    well as one layer can: with its skip, before the rectifier that follows. Several names are done
    in the order of the forward pass; each layer is fitted to what the network gave before the
    call, from what it gives now, and so makes up for the layers before it. Where the stretch held
    a batch norm the new layer gets one too, "collapsed_norm": it changes nothing at first and lets
    the network be fine-tuned at the rates it was trained with. Fine-tune afterwards; a merge folds
    the norm. Returns what the plan records of it, one operation for each layer.

    Args:
        network: the captured network.
        names: of blocks or stretches, see `network.blocks` and `network.stretches`.
        loader: the data to fit on, unshuffled and without augmentation; labels are not used.
        kernel_size: of the new convolutions; None takes that of each stretch's largest layer.
        samples: fit on this many samples only; about 1,000 are plenty, as each fit draws its
            32,768 positions (more where layers are wide) from all of them.
        ridge: the regularisation as a part of the input's mean variance; None for 1e-5.

    Raises:
        NameNotFoundError: there is no such block or stretch; names the nearest ones.
        ConfigError: names overlap, the kernel does not fit, `ridge` is negative, or there are too
            few samples.
        DataError: the loader is empty.
        TrainingError: activations are not finite. After any error the network is as it was.

    Example:
        >>> import shoal, torch
        >>> images = torch.randn(64, 1, 8, 8)
        >>> net = shoal.capture(shoal.models.digits_resnet(), images)

        >>> [operation.names for operation in shoal.collapse_(net, ["layer1.1"], [images])]
        [('layer1.1',)]
        >>> net.get_submodule("layer1.1.collapsed").kernel_size
        (3, 3)
    """
    chosen = _in_order(network, named_once(names), kernel_size)
    done: list[Operation] = []
    with network.unchanged_on_error():
        before = network.copy().eval() if len(chosen) > 1 else None
        for i, name in enumerate(chosen):
            stretch = _sized(network, name, kernel_size)
            reference = before if i > 0 else None
            fitted = fit_stretches(
                network, [stretch], loader, samples=samples, ridge=ridge, reference=reference
            )[name]
            layers = collapsed_layers(network, stretch, fitted)
            done.append(put_collapsed_(network, stretch, *layers))
    return done


def collapsed_layers(
    network: Network, stretch: Stretch, fitted: FittedLayer
) -> tuple[nn.Module, nn.Module | None]:
    """Return the fitted layer, and the batch norm after it if the stretch has one."""
    like = network.get_submodule(stretch.layers[0]).weight  # of its device, type and memory format
    assert isinstance(like, Tensor)
    called = (str(n.target) for n in stretch.nodes if n.op == "call_module")
    normed = any(isinstance(network.get_submodule(path), nn.BatchNorm2d) for path in called)
    return fitted.layer(like), fitted.norm(like) if normed and stretch.kind == "conv" else None


def put_collapsed_(
    network: Network, stretch: Stretch, layer: nn.Module, norm: nn.Module | None = None
) -> Operation:
    """Put a layer, and a norm after it, in the place of a stretch and record it in the plan."""
    path = free_path(network, f"{stretch.path}.collapsed".lstrip("."))
    layers = [(path, layer)]
    if norm is not None:
        layers.append((free_path(network, f"{path}_norm"), norm))
    replace_stretch_(network, stretch.start, stretch.end, layers)
    remove_dead_(network)
    made = {name: str(module) for name, module in layers}
    return network.plan.record("collapse", (stretch.name,), layers=made)


def _in_order(network: Network, names: Sequence[str], kernel_size: int | None) -> list[str]:
    """Return the names in the order of the forward pass, if these stretches can be collapsed."""
    for name in names:
        _sized(network, name, kernel_size)
    chosen = [stretch for stretch in network.stretches if stretch.name in names]
    for one, other in combinations(chosen, 2):
        if set(one.nodes) & set(other.nodes):
            raise ConfigError(f"'{one.name}' and '{other.name}' overlap: collapse one of them")
    return [stretch.name for stretch in chosen]


def _sized(network: Network, name: str, kernel_size: int | None) -> Stretch:
    stretch = network.stretch(name)
    sized = stretch if kernel_size is None else with_kernel(stretch, kernel_size)
    if isinstance(sized, str):
        raise ConfigError(sized)
    return sized


def fit_stretches(
    network: Network,
    stretches: Sequence[Stretch],
    loader: Iterable[Any],
    *,
    samples: int | None = None,
    ridge: float | None = None,
    reference: Network | None = None,
    progress: Callable[[int, int], None] | None = None,
    rows: Callable[[Stretch], int] | None = None,
    leave_out: bool = False,
) -> dict[str, FittedLayer]:
    """Fit one layer to each stretch, in one pass over the data where memory allows.

    What the network computes at its stretches is the target; or a `reference`, another network with
    stretches of these names. The matrices of one pass take at most 1.5 GiB, unless a single stretch
    needs more. `rows` says on about how many positions a stretch is fitted, in place of its shape's
    `rows`; `leave_out` skips stretches that there are too few samples for; the other arguments are
    those of `collapse_` and `shoal.score`. Returns the fitted layers by name.
    """
    if ridge is not None and not ridge >= 0.0:
        raise OptionError("ridge", ridge, "a number from 0, or None")
    expected = Batches(loader, samples=samples).expected
    found: dict[str, FittedLayer] = {}
    for group in _groups(stretches):
        moments = {
            s.name: LayerMoments(
                s.shape, name=s.name, samples=expected, rows=None if rows is None else rows(s)
            )
            for s in group
        }
        observer = _StretchObserver({s.name: s for s in group}, moments, reference)
        observe(network, loader, [observer], samples=samples, progress=progress)
        for name in list(moments):
            one = moments.pop(name)
            if one.spare > 0 or not leave_out:
                found[name] = one.solve(ridge)
    return found


def _groups(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    """Share the stretches among passes so that their matrices fit into memory together."""
    groups: list[list[Stretch]] = []
    held = 0
    for stretch in stretches:
        held += stretch.shape.fit_bytes
        if not groups or held > _PASS_BYTES:
            groups.append([])
            held = stretch.shape.fit_bytes
        groups[-1].append(stretch)
    return groups


@dataclass
class _StretchObserver(Observer):
    """Feeds what goes into and comes out of each stretch to its moments.

    A reference runs on each batch first, and its values are the outputs.
    """

    stretches: Mapping[str, Stretch]
    moments: Mapping[str, LayerMoments]
    reference: Network | None
    targets: dict[str, Tensor] = field(default_factory=dict)
    keys: Tensor = field(default_factory=lambda: torch.zeros(0))  # of the batch
    piece_keys: Tensor | None = None
    in_pieces: bool = True

    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        named, model = self.stretches, self.reference
        if model is None:
            taps = [Tap(s.end, (s.start, s.end), partial(self._add, n)) for n, s in named.items()]
            return [listen(network, taps)]
        ends = {name: model.stretch(name).end for name in named}
        keep = self.targets.__setitem__
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
        target = self.targets.pop(name) if y is None else y
        self.moments[name].add(x, target, self.piece_keys)

    def begin(self, index: int, batch: Batch) -> None:
        self.keys = sample_keys(batch)

    def piece(self, first: int, size: int) -> None:
        self.piece_keys = self.keys[first : first + size]

    def finish(self, samples: int, population: int | None) -> None:
        for moments in self.moments.values():
            moments.finish()
