"""Linearize: put a line, or the identity, in the place of a site's rectifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from shoal.errors import ConfigError, OptionError
from shoal.network import Network, Site
from shoal.network.cleanup import hand_over
from shoal.network.modules import Line
from shoal.passes.lines import FittedLine, LineMoments
from shoal.passes.observe import observe
from shoal.surgery.names import named_once

__all__ = ["fit_lines", "linearize_", "put_linear_"]


def fit_lines(
    network: Network,
    loader: Iterable[Any],
    names: Sequence[str] | None = None,
    *,
    samples: int | None = None,
) -> dict[str, FittedLine]:
    """Fit the least-squares line of each site's rectifier in one pass over the data.

    Args:
        network: the captured network.
        loader: the data, unshuffled and without augmentation.
        names: the sites; None for all that still have their rectifier.
        samples: use only this many samples.

    Returns:
        The lines by the names of the sites.

    Raises:
        NameNotFoundError: a site does not exist.
        ConfigError: a site, or all of them, have no rectifier any more.
        DataError: the loader is empty.
        TrainingError: activations are not finite.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = shoal.capture(model.eval(), torch.randn(2, 4))

        >>> lines = shoal.fit_lines(net, [torch.randn(64, 4)])
        >>> lines["1"].slope.shape  # a slope and an intercept for each channel
        torch.Size([8])
        >>> net = shoal.linearize_(net, ["1"], lines=lines)
    """
    for name in names or ():
        network.site(name)
    moments = LineMoments(names)
    observe(network, loader, [moments], samples=samples)
    return moments.lines()


def linearize_(
    network: Network,
    names: Sequence[str] | str,
    how: str = "line",
    loader: Iterable[Any] | None = None,
    *,
    samples: int | None = None,
    lines: Mapping[str, FittedLine] | None = None,
) -> Network:
    """Replace the rectifiers of sites by linear maps, in place, and record it in the plan.

    Args:
        network: the captured network.
        names: the sites, or one site.
        how: "line" puts the per-channel line a·z + b fitted to the rectifier (trainable
            afterwards), "identity" passes z as it is (EASIER as published).
        loader: the data that lines are fitted on, unshuffled and without augmentation.
        samples: fit on this many samples only.
        lines: lines fitted before (`fit_lines`), in place of `loader`; they are copied.

    Returns:
        The network itself.

    Raises:
        NameNotFoundError: a site does not exist; names the nearest ones.
        ConfigError: a site is linearized already or named twice, "line" was asked for without
            data, or a given line has another number of channels than its site.
        DataError: the loader is empty.
        TrainingError: activations are not finite.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = shoal.capture(model.eval(), torch.randn(2, 4))

        >>> net = shoal.linearize_(net, ["1"], loader=[torch.randn(64, 4)])
        >>> net.site("1").linearized, net.plan.names("linearize")
        ('line', ['1'])
    """
    if how not in ("line", "identity"):
        raise OptionError("how", how, "'line' or 'identity'")
    chosen = named_once(names)
    sites = [network.site(name) for name in chosen]
    for site in sites:
        if site.linearized is not None:
            raise ConfigError(f"site '{site.name}' is linearized already: leave it out")
    fitted: Mapping[str, FittedLine] = lines or {}
    if how == "line" and not set(chosen) <= set(fitted):
        if loader is None:
            raise ConfigError(
                "how='line' fits the lines to data: give loader=, or use how='identity'"
            )
        fitted = fit_lines(network, loader, chosen, samples=samples)
    if how == "line":
        for site in sites:
            _check_line(site, fitted[site.name])
    for site in sites:
        put_linear_(network, site, fitted[site.name] if how == "line" else None)
    if sites:
        network.plan.record("linearize", tuple(chosen), how=how)
    return network


def _check_line(site: Site, line: FittedLine) -> None:
    if site.channels is None:
        raise ConfigError(
            f"the number of channels of site '{site.name}' is not fixed: use how='identity'"
        )
    for part in (line.slope, line.intercept):
        if tuple(part.shape) != (site.channels,):
            raise ConfigError(
                f"the line of site '{site.name}' has the shape {list(part.shape)}, but the site "
                f"has {site.channels} channels: fit the lines to this network"
            )


def put_linear_(network: Network, site: Site, line: FittedLine | None) -> None:
    """Put a line, or the identity for None, where the site's rectifier is; not recorded."""
    old = network.get_submodule(site.name)
    hand_over(network, old)
    new: nn.Module = nn.Identity()
    if line is not None:
        like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
        parts = line.slope, line.intercept
        slope, intercept = (v.detach().to(like.device, like.dtype, copy=True) for v in parts)
        new = Line(slope, intercept, site.channel_dim)
    new.train(old.training)
    network.replace_module(site.name, new)
