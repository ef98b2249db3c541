"""Lines without data: what a batch norm says of the rectifier behind it.

A batch norm gives each channel the mean β and the deviation |γ|. If its values are taken to be
Gaussian, the share of them that is above 0 and the least-squares line of the rectifier follow from
these two numbers. TLC (Liao et al. 2025) takes the share; the line is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from shoal.errors import ConfigError
from shoal.modes import eval_mode
from shoal.network import Network, Site
from shoal.network.flow import known_of
from shoal.passes.batches import observe
from shoal.surgery.linearize import FittedLine, LineMoments, like_of

_REACH, _NODES = 9.0, 4097  # of the integral, in standard deviations


class Gaussian(NamedTuple):
    """The input of a rectifier, channel by channel, as float64 [channels]."""

    mean: Tensor
    deviation: Tensor


def norm_inputs(network: Network) -> dict[str, Gaussian]:
    """Return what batch norms say of the inputs of the rectifiers that follow them directly.

    Mean and deviation are β and |γ|, by the site's name. Dropout may lie between; a rectifier that
    follows anything else, such as the addition of a residual block, has no entry.
    """
    left = [site for site in network.sites if site.linearized is None]
    norms = {site.name: _norm_before(network, site) for site in left}
    return {name: _of_norm(norm) for name, norm in norms.items() if norm is not None}


def share_on(given: Gaussian) -> Tensor:
    """Return the share of each channel's values that is above 0: Φ(β / |γ|), float64 [channels].

    A channel that never varies is ON if it is above 0 (TLC, with P(OFF) = 1 − P(ON)).
    """
    varies = given.deviation > 0
    share = torch.special.ndtr(given.mean / given.deviation.where(varies, 1.0))
    return share.where(varies, (given.mean > 0).double())


def implied_line(network: Network, site: Site, given: Gaussian, how: str = "line") -> FittedLine:
    """Return what may stand for a site's rectifier if its input is Gaussian.

    "line" is the least-squares line: with z ~ N(β, γ²) its slope is cov(z, r(z)) / γ² and its
    intercept E r(z) − slope·β. For ReLU that is Φ(β/|γ|) and |γ|·φ(β/|γ|); the integrals are taken
    numerically, for every kind of rectifier. A channel that never varies has slope 0, as a line
    fitted to data has. "mask" is the choice of TLC: z where β > 0, else 0.
    """
    mean, deviation = given
    nodes = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64)[:, None]
    weights = torch.exp(-nodes.square() / 2)
    weights /= weights.sum()
    like, rectifier = like_of(network), network.get_submodule(site.name)
    z = mean + deviation * nodes  # [nodes, channels]
    with eval_mode(rectifier), torch.no_grad():
        r = rectifier(_as_input(z, site).to(like.device, like.dtype)).cpu().double().view_as(z)
    average = (weights * r).sum(0)
    if how == "mask":
        slope = (mean > 0).double()
        intercept = torch.zeros_like(slope)
    else:
        slope = (weights * nodes * r).sum(0) / deviation.where(deviation > 0, math.inf)
        intercept = average - slope * mean
    lost = float((weights * (r - slope * z - intercept).square()).sum())
    total = float((weights * (r - average).square()).sum())
    return FittedLine(slope, intercept, lost / total if total > 0 else 0.0)


def _as_input(z: Tensor, site: Site) -> Tensor:
    """Give values, [nodes, channels], the rank that the site's input has: nodes are samples."""
    shape = [1] * len(site.node.meta.get("shape") or z.shape)
    shape[0], shape[site.channel_dim] = z.shape
    return z.view(shape)


def implied_lines(
    network: Network,
    how: str = "line",
    loader: Iterable[Any] | None = None,
    *,
    samples: int | None = None,
) -> dict[str, FittedLine]:
    """Return what `implied_line` gives for each rectifier that follows a batch norm directly.

    With a loader, mean and deviation of the inputs of all others are measured in one pass over it.
    """
    given, left = norm_inputs(network), [s for s in network.sites if s.linearized is None]
    others = [site.name for site in left if site.name not in given]
    if loader is not None and others:
        moments = LineMoments(others)
        observe(network, loader, [moments], samples=samples)
        given |= {name: Gaussian(*found) for name, found in moments.inputs().items()}
    known = [site for site in left if site.name in given]
    return {site.name: implied_line(network, site, given[site.name], how) for site in known}


def norm_lines(network: Network, names: Sequence[str] | None = None) -> dict[str, FittedLine]:
    """Return the line of each site's rectifier that the batch norm before it implies: no data.

    Args:
        network: the captured network.
        names: the sites; None takes all whose rectifier follows a batch norm directly.

    Raises:
        NameNotFoundError: a site does not exist; names the nearest ones.
        ConfigError: a site, or each of them, has no batch norm right before its rectifier.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = shoal.capture(model.eval(), torch.randn(2, 4))

        >>> lines = shoal.norm_lines(net)  # β = 0 and γ = 1: half of the values are above 0
        >>> round(float(lines["2"].slope[0]), 3), round(float(lines["2"].intercept[0]), 3)
        (0.5, 0.399)
        >>> operations = shoal.linearize_(net, ["2"], lines=lines)
    """
    given = norm_inputs(network)
    for name in given if names is None else names:
        if network.site(name).name not in given:
            raise ConfigError(
                f"site '{name}' has no rectifier that follows a batch norm directly: fit its line "
                "to data"
            )
    if not given:
        raise ConfigError("no rectifier follows a batch norm directly: fit lines to data")
    chosen = list(given) if names is None else list(names)
    return {name: implied_line(network, network.site(name), given[name]) for name in chosen}


def _norm_before(network: Network, site: Site) -> nn.Module | None:
    node: fx.Node | None = site.node.all_input_nodes[0]
    while node is not None and known_of(node, network).linear == "nothing":
        node = next(iter(node.all_input_nodes), None)
    if node is None or node.op != "call_module" or known_of(node, network).linear != "norm":
        return None
    return network.get_submodule(str(node.target))


def _of_norm(norm: nn.Module) -> Gaussian:
    size = int(norm.num_features)  # type: ignore[arg-type]
    scale = torch.ones(size) if norm.weight is None else norm.weight
    shift = torch.zeros(size) if norm.bias is None else norm.bias
    return Gaussian(*(v.detach().cpu().double() for v in (shift, scale.abs())))  # type: ignore
