"""Fit the line that replaces a rectifier, per channel, by least squares.

With z the rectifier's input and r its output, the line a·z + b with the least mean squared error is
a = cov(z, r) / var(z), b = mean(r) − a·mean(z). Sums of z, z², r and z·r are all it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.network import Network, Site

__all__ = ["FittedLine", "LineMoments"]

_CHUNK = 1 << 19  # entries; float32 sums of so few lose nothing that matters


@dataclass(frozen=True)
class FittedLine:
    """A fitted line per channel.

    Attributes:
        slope: shape [channels].
        intercept: shape [channels].
        residual: the mean squared error over the variance of the rectifier's output, 0 to 1: how
            far from linear the site is.
    """

    slope: Tensor
    intercept: Tensor
    residual: float


class LineMoments:
    """Observer that collects what the fit of each site's line needs.

    Sums are taken about a pilot mean (the first batch's), in chunks, and gathered in float64, so
    that a large mean does not cost the variance its digits.

    Args:
        names: the sites; None for all that still have their rectifier.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._names = None if names is None else set(names)
        self._sites: list[Site] = []
        self._pilot: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}  # [5, channels]: count, z, z·z, r, z·r; r·r is sixth

    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        """Watch input and output of the sites."""
        self._sites = [
            site
            for site in network.sites
            if site.linearized is None and (self._names is None or site.name in self._names)
        ]
        return [
            network.get_submodule(site.name).register_forward_hook(self._collector(site))
            for site in self._sites
        ]

    def begin(self, index: int, size: int) -> None:
        """Batches are all alike here."""

    def _collector(self, site: Site) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def collect(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            z, r = (_as_rows(value.detach(), site.channel_dim) for value in (inputs[0], output))
            if site.name not in self._pilot:
                self._pilot[site.name] = z[:4096].float().mean(0)
                self._sums[site.name] = torch.zeros(
                    (6, z.shape[1]), dtype=torch.float64, device=z.device
                )
            pilot, sums = self._pilot[site.name], self._sums[site.name]
            step = max(1, _CHUNK // z.shape[1])
            for zs, rs in zip(z.split(step), r.split(step), strict=True):
                centred, out = zs.float() - pilot, rs.float()
                sums[0] += len(zs)
                sums[1] += centred.sum(0)
                sums[2] += (centred * centred).sum(0)
                sums[3] += out.sum(0)
                sums[4] += (centred * out).sum(0)
                sums[5] += (out * out).sum(0)

        return collect

    def finish(self, samples: int, everything: bool) -> None:
        """Undo the pilot means and sum over processes."""
        for site in self._sites:
            if site.name not in self._sums:
                raise ConfigError("fewer batches than processes: use fewer processes")
            n, z, zz, r, zr, rr = self._sums[site.name].cpu()
            c = self._pilot[site.name].double().cpu()
            raw = torch.stack([n, z + n * c, zz + 2 * c * z + n * c * c, r, zr + c * r, rr])
            self._sums[site.name] = sum_across(raw)

    def lines(self) -> dict[str, FittedLine]:
        """Return the fitted line of each site.

        A channel whose input never varies gets slope 0 and the constant output as intercept.

        Raises:
            TrainingError: a site's activations are not finite.
        """
        return {site.name: self._fit(site.name) for site in self._sites}

    def _fit(self, name: str) -> FittedLine:
        n, z, zz, r, zr, rr = self._sums[name]
        if not bool(self._sums[name].isfinite().all()):
            raise TrainingError(
                f"the activations at site '{name}' are not finite: the network's weights or its "
                "data are broken; check them first"
            )
        mean_z, mean_r = z / n, r / n
        var = (zz / n - mean_z**2).clamp(min=0)
        cov = zr / n - mean_z * mean_r
        constant = var <= 1e-12 * (zz / n).clamp(min=1e-30)
        slope = torch.where(constant, torch.zeros_like(cov), cov / var.clamp(min=1e-300))
        intercept = mean_r - slope * mean_z
        spread = (rr / n - mean_r**2).clamp(min=0)
        lost = (spread - slope * cov).clamp(min=0)
        total = float(spread.sum())
        residual = float(lost.sum()) / total if total > 0 else 0.0
        return FittedLine(slope.float(), intercept.float(), residual)


def _as_rows(value: Tensor, channel_dim: int) -> Tensor:
    """Return the values as [positions, channels]."""
    rows = value.movedim(channel_dim, -1)
    return rows.reshape(-1, rows.shape[-1])
