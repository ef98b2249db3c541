"""How many times a network evaluates a rectifier for one sample, by site and by stage.

Private inference pays for each of these evaluations, and next to nothing for the linear rest. One
is an entry of what goes into a site: ResNet-18 for CIFAR has 557,056 of them at 3×32×32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from shoal.measure.on_shapes import on_shapes
from shoal.network import Network, Site
from shoal.network.inputs import Inputs, as_call, batch_size, borrowed, home_device, map_tensors
from shoal.network.modules import ByChannel


def rectifier_evaluations(network: Network, example_inputs: Inputs | None = None) -> dict[str, int]:
    """Count how often each site that has its rectifier evaluates it, for one sample.

    A site evaluates its rectifier once for each entry of its input, or of those of its channels
    that have one. Linearized sites are left out, and so is what stayed an opaque operation. The
    network is run once on tensors that have shapes and no data, and is left as it was.

    Args:
        network: the captured network; merging it changes none of the counts.
        example_inputs: of which size to count, batch first; None takes the captured one.

    Returns:
        The evaluations of one sample by the site's name, in the order of the forward pass. The sum
        is the network's `relus`, as tables have it.

    Raises:
        ConfigError: the network cannot be called with these inputs.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten())
        >>> net = shoal.capture(model.eval(), torch.randn(2, 3, 4, 4))
        >>> shoal.measure.rectifier_evaluations(net)
        {'1': 128}
        >>> operations = shoal.linearize_(net, "1", "identity")
        >>> shoal.measure.rectifier_evaluations(net)
        {}
    """
    _, counts = _counted(network, example_inputs)
    return counts


@dataclass(frozen=True)
class SiteStage:
    """The sites that see an image at one resolution, or all sites that see vectors.

    Attributes:
        positions: the sizes of a site's input without batch and channels, (32, 32) of an image.
        sites: their names in the order of the forward pass, linearized ones too.
        evaluations: of one sample, by site, of those that have their rectifier.
    """

    positions: tuple[int, ...]
    sites: tuple[str, ...]
    evaluations: Mapping[str, int]

    @property
    def total(self) -> int:
        """All evaluations of one sample."""
        return sum(self.evaluations.values())

    @property
    def title(self) -> str:
        """The resolution for people, as "32×32"."""
        return "×".join(map(str, self.positions)) or "vectors"


def rectifier_stages(network: Network, example_inputs: Inputs | None = None) -> list[SiteStage]:
    """Return the stages of a network's sites in the order of the forward pass.

    Of a residual network they are the stages that papers count by: the stem's site is in the first
    one. What sees a single position in between, as in squeeze-and-excitation, belongs to the stage
    around it. The arguments are those of `rectifier_evaluations`.
    """
    shapes, counts = _counted(network, example_inputs)
    sites = [site for site in network.sites if site.name in shapes]
    positions = {site.name: _positions(site, shapes[site.name]) for site in sites}
    last_wide = max((i for i, s in enumerate(sites) if prod(positions[s.name]) > 1), default=-1)
    members: dict[tuple[int, ...], list[str]] = {}
    stage: tuple[int, ...] = ()
    for i, site in enumerate(sites):
        squeezed = prod(positions[site.name]) == 1 and 0 < i < last_wide
        stage = stage if squeezed else positions[site.name]
        members.setdefault(stage, []).append(site.name)
    return [
        SiteStage(shape, tuple(names), {name: counts[name] for name in names if name in counts})
        for shape, names in members.items()
    ]


def _counted(
    network: Network, example_inputs: Inputs | None
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return the shape of each site's input, for a batch, and the evaluations for one sample."""
    if example_inputs is None:
        example_inputs = network.example()
    device = home_device(network, example_inputs)
    args, kwargs = as_call(map_tensors(lambda t: t.detach().to(device), example_inputs))

    def run(args: Any, kwargs: Any) -> dict[str, tuple[int, ...]]:
        with _watched(network) as shapes:
            network(*args, **kwargs)
        return shapes

    with borrowed(network), torch.no_grad():
        shapes = on_shapes(run, args, kwargs, "counting rectifiers")
    samples = batch_size(example_inputs)
    # All of a shape's sizes count: windows of an image may lie in the first dimension.
    counts = {
        site.name: round(prod(shapes[site.name]) / samples * _share(network, site))
        for site in network.sites
        if site.linearized is None and site.name in shapes
    }
    return shapes, counts


def _share(network: Network, site: Site) -> float:
    """Return the share of a site's channels that have the rectifier."""
    module = network.get_submodule(site.name)
    return float(module.kept.double().mean()) if isinstance(module, ByChannel) else 1.0


@contextmanager
def _watched(network: Network) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield what will hold the shape of each site's input once the network has run."""
    shapes: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shapes[name] = tuple(map(int, inputs[0].shape))

        return look

    with ExitStack() as handles:
        for site in network.sites:
            module = network.get_submodule(site.name)
            handles.callback(module.register_forward_pre_hook(watch(site.name)).remove)
        yield shapes


def _positions(site: Site, shape: tuple[int, ...]) -> tuple[int, ...]:
    dim = site.channel_dim % len(shape)
    return tuple(size for i, size in enumerate(shape) if i not in (0, dim))
