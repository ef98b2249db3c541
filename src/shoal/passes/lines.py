"""Fit the line that replaces a rectifier, per channel, by least squares.

With z the rectifier's input and r its output, the line a·z + b with the least mean squared error is
a = cov(z, r) / var(z), b = mean(r) − a·mean(z).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.network import Network, Site
from shoal.passes.observe import Observer
from shoal.passes.states import chunks_of_parts

__all__ = ["FittedLine", "LineMoments"]

_CHUNK = 1 << 17  # entries; 1 MiB of float64, which stays in a CPU's cache


@dataclass(frozen=True)
class FittedLine:
    """A fitted line per channel.

    Attributes:
        slope: shape [channels], float64.
        intercept: shape [channels], float64, in units of the rectifier's output.
        residual: the mean squared error over the variance of the rectifier's output, 0 to 1: how
            far from linear the site is.
    """

    slope: Tensor
    intercept: Tensor
    residual: float


class LineMoments(Observer):
    """Collects what the fit of each site's line needs.

    Sums are taken about pilot means (of the first entries seen) and in float64, so that a large
    mean does not cost the variance its digits, and so that it does not matter which process saw
    what.

    Args:
        names: the sites; None for all that still have their rectifier.
        positions: use about this many positions of each batch, spread evenly over samples and
            image and others in each batch; None uses all. A few thousand fix two numbers per
            channel to a fraction of a percent and save nearly all of the time.

    Raises:
        ConfigError: at `attach`, if there is no rectifier to fit a line to.
    """

    def __init__(self, names: Sequence[str] | None = None, *, positions: int | None = None) -> None:
        self._names = None if names is None else set(names)
        self._positions = positions
        self._batch = 0
        self._sites: list[Site] = []
        self._pilots: dict[str, Tensor] = {}  # [2, channels]: of z and r
        self._sums: dict[str, Tensor] = {}  # [6, channels]: 1, z, r, z·z, z·r, r·r

    @override
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        self._pilots, self._sums = {}, {}
        left = [site for site in network.sites if site.linearized is None]
        self._sites = [s for s in left if self._names is None or s.name in self._names]
        missing = (self._names or set()) - {site.name for site in self._sites}
        if missing or not self._sites:
            what = f"site '{min(missing)}'" if missing else "the network"
            raise ConfigError(f"{what} has no rectifier left to fit a line to")
        return [
            network.get_submodule(site.name).register_forward_hook(partial(self._collect, site))
            for site in self._sites
        ]

    @override
    def begin(self, index: int, batch: Batch) -> None:
        self._batch = index

    def _collect(
        self, site: Site, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        z, r = (value.detach().movedim(site.channel_dim, -1) for value in (inputs[0], output))
        if self._positions is not None:
            z, r = self._spread(z, r, self._positions)
        for z_rows, r_rows in _rows_in_chunks(z, r):
            if site.name not in self._sums:
                self._pilots[site.name] = torch.stack([z_rows.mean(0), r_rows.mean(0)])
                self._sums[site.name] = z_rows.new_zeros((6, z_rows.shape[1]))
            pilot, sums = self._pilots[site.name], self._sums[site.name]
            dz, dr = z_rows.sub_(pilot[0]), r_rows.sub_(pilot[1])
            sums[0] += len(dz)
            sums[1] += dz.sum(0)
            sums[2] += dr.sum(0)
            sums[4] += (dz * dr).sum(0)
            sums[3] += dz.square_().sum(0)
            sums[5] += dr.square_().sum(0)

    def _spread(self, z: Tensor, r: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """Return about this many positions of both, as [samples, places, channels]."""
        z, r = (v.flatten(1, -2) if v.dim() > 2 else v.reshape(-1, 1, v.shape[-1]) for v in (z, r))
        step = max(1, z.shape[0] * z.shape[1] // positions)
        along = min(step, z.shape[1])  # first fewer places of each sample, then fewer samples
        across = max(1, step // max(1, along))
        chosen = slice(self._batch % across, None, across), slice(self._batch % along, None, along)
        return z[chosen], r[chosen]

    @override
    def finish(self, samples: int, population: int | None) -> None:
        """Sum over processes, and move the sums from the pilot means to the means of all data."""
        for site in self._sites:
            # Zeros if this process had no batch.
            sums = self._sums.get(site.name, torch.zeros(6, site.channels or 1)).double().cpu()
            pilots = self._pilots.get(site.name, torch.zeros(2, site.channels or 1)).double().cpu()
            n, z, r, zz, zr, rr = sums
            total = sum_across(torch.stack([n, z + n * pilots[0], r + n * pilots[1]]))
            means = total[1:] / total[0]
            dz, dr = pilots - means
            about_means = [
                zz + 2 * dz * z + n * dz * dz,
                zr + dz * r + dr * z + n * dz * dr,
                rr + 2 * dr * r + n * dr * dr,
            ]
            self._sums[site.name] = torch.stack(
                [total[0], *means, *sum_across(torch.stack(about_means))]
            )

    def lines(self) -> dict[str, FittedLine]:
        """Return the fitted line of each site.

        A channel whose input never varies gets slope 0 and the constant output as intercept.

        Raises:
            TrainingError: a site's activations are not finite.
        """
        return {site.name: self._fit(site.name) for site in self._sites}

    def _fit(self, name: str) -> FittedLine:
        n, mean_z, mean_r, zz, zr, rr = self._sums[name]
        if not bool(self._sums[name].isfinite().all()):
            raise TrainingError(
                f"the activations at site '{name}' are not finite: the network's weights or its "
                "data are broken; check them first"
            )
        # What rounding alone may leave of a constant input's variance.
        constant = zz <= n * mean_z.square() * 1e-28
        slope = torch.where(constant, torch.zeros_like(zr), zr / zz.where(~constant, 1.0))
        intercept = mean_r - slope * mean_z
        lost, total = float((rr - slope * zr).clamp(min=0).sum()), float(rr.sum())
        return FittedLine(slope, intercept, lost / total if total > 0 else 0.0)


def _rows_in_chunks(z: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield fresh copies of pieces of both, as [positions, channels] in float64."""
    if z.numel() == 0:
        return
    dtype = torch.float32 if z.device.type == "mps" else torch.float64  # it has no float64
    both = (chunks_of_parts(value, 1, _CHUNK) for value in (z, r))
    for pair in zip(*both, strict=True):
        z_rows, r_rows = (v.reshape(-1, v.shape[-1]).to(dtype, copy=True) for _, _, v in pair)
        yield z_rows, r_rows
