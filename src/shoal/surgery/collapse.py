"""Collapse: put one fitted layer in the place of a residual block or of a stretch of layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from shoal.errors import ConfigError
from shoal.network import Network
from shoal.network.cleanup import remove_dead_
from shoal.network.rewrite import free_path, replace_stretch_
from shoal.network.stretches import Stretch, with_kernel
from shoal.surgery.fit_conv import FittedLayer
from shoal.surgery.fit_stretches import fit_stretches
from shoal.surgery.names import named_once

__all__ = ["collapse_", "collapsed_layers", "put_collapsed_"]


def collapse_(
    network: Network,
    names: Sequence[str] | str,
    loader: Iterable[Any],
    *,
    kernel_size: int | None = None,
    samples: int | None = None,
    ridge: float | None = None,
) -> Network:
    """Replace blocks or stretches by one layer each, fitted by ridge regression, in place.

    The new layer, "collapsed" below the block's path, gives what the block gave on the data as
    well as one layer can: with its skip, before the rectifier that follows. Several names are done
    in the order of the forward pass; each layer is fitted to what the network gave before the
    call, from what it gives now, and so makes up for the layers before it. Where the stretch held
    a batch norm the new layer gets one too, "collapsed_norm": it changes nothing at first and lets
    the network be fine-tuned at the rates it was trained with. Fine-tune afterwards; a merge folds
    the norm.

    Args:
        network: the captured network.
        names: of blocks or stretches, see `network.blocks` and `network.stretches`.
        loader: the data to fit on, unshuffled and without augmentation; labels are not used.
        kernel_size: of the new convolutions; None takes that of each stretch's largest layer.
        samples: fit on this many samples only; about 1,000 are plenty, as each fit draws its
            32,768 positions (more where layers are wide) from all of them.
        ridge: strength of the regularisation as a part of the input's mean variance; None for
            1e-5.

    Returns:
        The network itself.

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

        >>> net = shoal.collapse_(net, ["layer1.1"], [images])
        >>> net.get_submodule("layer1.1.collapsed").kernel_size
        (3, 3)
    """
    chosen = _in_order(network, named_once(names), kernel_size)
    with network.unchanged_on_error():
        before = network.copy().eval() if len(chosen) > 1 else None
        for i, name in enumerate(chosen):
            stretch = _sized(network, name, kernel_size)
            reference = before if i > 0 else None
            fitted = fit_stretches(
                network, [stretch], loader, samples=samples, ridge=ridge, reference=reference
            )[name]
            put_collapsed_(network, stretch, *collapsed_layers(network, stretch, fitted))
    return network


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
) -> None:
    """Put a layer in the place of a stretch and record it in the plan.

    Args:
        network: changed in place.
        stretch: of this network as it is now.
        layer: of the stretch's shape.
        norm: comes after it.
    """
    path = free_path(network, f"{stretch.path}.collapsed".lstrip("."))
    layers = [(path, layer)]
    if norm is not None:
        layers.append((free_path(network, f"{path}_norm"), norm))
    replace_stretch_(network, stretch.start, stretch.end, layers)
    remove_dead_(network)
    made = {name: str(module) for name, module in layers}
    network.plan.record("collapse", (stretch.name,), layers=made)


def _in_order(network: Network, names: Sequence[str], kernel_size: int | None) -> list[str]:
    """Return the names in the order of the forward pass, if these stretches can be collapsed."""
    for name in names:
        _sized(network, name, kernel_size)
    chosen = [stretch for stretch in network.stretches if stretch.name in names]
    owner: dict[Any, str] = {}
    for stretch in chosen:
        for node in stretch.nodes:
            if node in owner:
                raise ConfigError(
                    f"'{owner[node]}' and '{stretch.name}' overlap: collapse one of them"
                )
            owner[node] = stretch.name
    return [stretch.name for stretch in chosen]


def _sized(network: Network, name: str, kernel_size: int | None) -> Stretch:
    stretch = network.stretch(name)
    sized = stretch if kernel_size is None else with_kernel(stretch, kernel_size)
    if isinstance(sized, str):
        raise ConfigError(sized)
    return sized
