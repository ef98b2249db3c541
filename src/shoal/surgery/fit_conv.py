"""Fit one convolution or linear layer to a map that is only known by what goes in and comes out.

With X the patches of the input (one row per output position) and Y the output, both about their
means, the weights W = (XᵀX + λI)⁻¹XᵀY have the least squared error (ridge regression; for
transformer blocks: ReplaceMe, Shopkhoev et al. 2025). XᵀX and XᵀY are added up while the data
stream by, in chunks of float32 into float64; the solve is a Cholesky factorisation in float64.

Memory, for d columns (kernel area · input channels) and m output channels: 8·d·(d + m) bytes while
the data stream, twice that while solving, and at most about 200 MiB for chunks. 512 channels with
a 3×3 kernel (d = 4,608) take 0.6 GiB in all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.network.layer_shape import LayerShape

__all__ = ["FittedLayer", "LayerMoments", "TooFewPositions"]

RIDGE = 1e-5  # of the mean variance of a column; enough to keep dead and doubled channels harmless
_STRONGER = (1e-9, 1e-7, 1e-5, 1e-3, 1e-1)  # tried in turn where the matrix is singular
_CHUNK = 1 << 23  # entries of X at a time: 32 MiB
_SPREAD = 2654435761  # a large prime (Knuth, multiplicative hashing)


class TooFewPositions(ConfigError):
    """A layer has more weights per output channel than there are positions to fit it on."""


@dataclass(frozen=True)
class FittedLayer:
    """A fitted layer.

    Attributes:
        shape: which layer it is.
        weight: float64, as the layer's own: [out, in, kernel height, kernel width] or [out, in].
        bias: float64, shape [out].
        residual: the expected squared error over the variance of the target, summed over channels;
            0 is exact, 1 is no better than a constant. Corrected for the number of weights, so
            that a fit on few positions does not look better than it is.
        mean: of what it gives, about; float64, shape [out].
        variance: of what it gives; float64, shape [out].
        rows: positions it was fitted on.
        samples: samples they were taken from.
    """

    shape: LayerShape
    weight: Tensor
    bias: Tensor
    residual: float
    mean: Tensor
    variance: Tensor
    rows: int
    samples: int

    def layer(self, like: Tensor) -> nn.Conv2d | nn.Linear:
        """Return it as a module, with the device and dtype of `like`, and its memory format."""
        made = self.shape.make(device=like.device, dtype=like.dtype)
        weight = self.weight
        if weight.dim() == 4 and like.dim() == 4 and not like.is_contiguous():
            weight = weight.contiguous(memory_format=torch.channels_last)
            made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            made.weight.copy_(weight)
            assert made.bias is not None
            made.bias.copy_(self.bias)
        return made

    def norm(self, like: Tensor) -> nn.BatchNorm2d:
        """Return a batch norm that leaves what the layer gives as it is, until it is trained."""
        made = nn.BatchNorm2d(self.shape.out_channels, device=like.device, dtype=like.dtype)
        assert made.running_mean is not None
        assert made.running_var is not None
        with torch.no_grad():
            made.running_mean.copy_(self.mean)
            made.running_var.copy_(self.variance)
            made.weight.copy_((made.running_var + made.eps).sqrt())
            made.bias.copy_(made.running_mean)
        return made


class LayerMoments:
    """Adds up what the fit of one layer needs, from batches of input and output.

    Args:
        shape: the layer to fit.
        name: what is fitted, for messages.
        rows: use about so many positions, drawn at random; None for `shape.rows`.
        samples: how many samples there will be; None if that is not known. Each then gives a share
            as if there were 256.
    """

    def __init__(
        self,
        shape: LayerShape,
        *,
        name: str = "the layer",
        rows: int | None = None,
        samples: int | None = None,
    ) -> None:
        self.shape = shape
        self.name = name
        self._per_sample = math.ceil((rows or shape.rows) / (samples or 256))
        self._count = 0
        self._samples = 0
        self._pilot: tuple[Tensor, Tensor] | None = None  # about which sums are taken: [d], [m]
        self._sums: tuple[Tensor, ...] = ()  # x [d], y [m], xx [d, d], xy [d, m], yy [m]

    # ------------------------------------------------------------------ adding up

    def add(self, inputs: Tensor, outputs: Tensor, keys: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            inputs: [N, C, H, W], or [N, …, C] for a linear layer.
            outputs: what the layer should give for it.
            keys: an integer for each sample, as `sample_keys` gives them, which decides what
                positions are used of it; N may be a multiple of their number, as of windows. None
                takes its number in the batch.
        """
        inputs, outputs = inputs.detach(), outputs.detach()
        self._samples += len(inputs)
        if not self.shape.kernel_size:
            flat = inputs.reshape(-1, inputs.shape[-1])
            chosen = self._choose(len(flat), len(inputs), keys, flat.device)
            targets = outputs.reshape(-1, outputs.shape[-1])
            for part in chosen.split(self._chunk_rows()):
                self._add_rows(flat.index_select(0, part), targets.index_select(0, part))
            return
        patches = _Patches(inputs, self.shape)
        targets = outputs.permute(0, 2, 3, 1).reshape(-1, outputs.shape[1])
        chosen = self._choose(len(targets), len(inputs), keys, inputs.device)
        for part in chosen.split(self._chunk_rows()):
            self._add_rows(patches.rows(part), targets.index_select(0, part))

    def _choose(
        self, positions: int, samples: int, keys: Tensor | None, device: torch.device
    ) -> Tensor:
        """Return the positions to use: of each sample some that follow from its key alone.

        So the fit does not hang on how the samples are put into batches.
        """
        own = positions // max(1, samples)  # of each sample
        if self._per_sample >= own:
            return torch.arange(positions, device=device)
        order = torch.randperm(own, generator=torch.Generator().manual_seed(0))
        known = torch.arange(samples) if keys is None else keys.cpu()
        parts = samples // max(1, len(known))
        if parts * len(known) != samples:  # what a sample is here is not known
            known, parts = torch.zeros(1, dtype=torch.int64), samples
        known = known.repeat_interleave(parts) + torch.arange(parts).repeat(len(known))
        first = known.remainder(own) * _SPREAD  # neighbouring keys begin far apart
        within = order[(first[:, None] + torch.arange(self._per_sample)).remainder(own)]
        return (torch.arange(samples)[:, None] * own + within).flatten().to(device)

    def _chunk_rows(self) -> int:
        return max(256, _CHUNK // self.shape.columns)

    def _add_rows(self, x: Tensor, y: Tensor) -> None:
        """Add rows [n, d] and [n, m] to the sums."""
        x, y = x.float(), y.float()
        if self._pilot is None:
            self._pilot = x.mean(0), y.mean(0)
            self._sums = self._zeros(x.device)
        x, y = x - self._pilot[0], y - self._pilot[1]
        parts = x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0)
        for total, part in zip(self._sums, parts, strict=True):
            total += part
        self._count += len(x)

    def _zeros(self, device: torch.device) -> tuple[Tensor, ...]:
        d, m = self.shape.columns, self.shape.out_channels
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sizes: tuple[tuple[int, ...], ...] = ((d,), (m,), (d, d), (d, m), (m,))
        return tuple(torch.zeros(size, dtype=dtype, device=device) for size in sizes)

    # ------------------------------------------------------------------ solving

    def finish(self) -> None:
        """Sum over processes, and move the sums from the pilot means to the means of all rows."""
        if self._pilot is None:  # this process had no batch
            self._pilot = torch.zeros(self.shape.columns), torch.zeros(self.shape.out_channels)
            self._sums = self._zeros(torch.device("cpu"))
        px, py = (p.to(self._sums[0].dtype) for p in self._pilot)
        x, y, xx, xy, yy = self._sums
        n = self._count
        total = sum_across(torch.tensor([float(n)], dtype=x.dtype, device=x.device))
        mean_x = sum_across(x + n * px) / total
        mean_y = sum_across(y + n * py) / total
        dx, dy = px - mean_x, py - mean_y
        # Σ(x − μ)(y − ν)ᵀ from the sums about the pilots, which are μ + dx and ν + dy.
        xx.addr_(x, dx).addr_(dx, x + n * dx)
        xy.addr_(x, dy).addr_(dx, y + n * dy)
        yy.add_(2 * dy * y + n * dy.square())
        self._count = int(total)
        self._samples = int(sum_across(torch.tensor(self._samples)))
        self._pilot = mean_x, mean_y
        self._sums = x, y, *(sum_across(part) for part in (xx, xy, yy))

    def solve(self, ridge: float | None = None) -> FittedLayer:
        """Return the fitted layer; `finish` comes first.

        Args:
            ridge: λ as a part of the mean squared deviation of a column; None for 1e-5.

        Raises:
            TooFewPositions: there are fewer than weights per output channel.
            TrainingError: the activations are not finite.
        """
        assert self._pilot is not None
        (mean_x, mean_y), (_, _, xx, xy, yy) = self._pilot, self._sums
        if not bool(xx.diagonal().isfinite().all() & yy.isfinite().all()):
            raise TrainingError(
                f"the activations at '{self.name}' are not finite: the network's weights or its "
                "data are broken; check them first"
            )
        spare = self._count - self.shape.columns - 1
        if spare < 1:
            raise TooFewPositions(
                f"'{self.name}' has {self._count} positions to fit {self.shape.columns} weights "
                "per channel on: give more samples or a smaller kernel_size"
            )
        weight = _ridge_solution(xx, xy, RIDGE if ridge is None else ridge)
        lost = yy.sum() - 2 * (weight * xy).sum() + (weight * (xx @ weight)).sum()
        variance = float(yy.sum())
        share = max(0.0, float(lost)) / variance if variance > 0 else 0.0
        return FittedLayer(
            shape=self.shape,
            weight=self._as_kernel(weight).cpu(),
            bias=(mean_y - mean_x @ weight).cpu(),
            residual=share * (self._count - 1) / spare,
            mean=mean_y.cpu(),
            variance=((weight * (xx @ weight)).sum(0) / self._count).clamp(min=0.0).cpu(),
            rows=self._count,
            samples=self._samples,
        )

    def _as_kernel(self, weight: Tensor) -> Tensor:
        """Bring [d, m] into the layer's own order; columns are (position in kernel, channel)."""
        if not self.shape.kernel_size:
            return weight.T.contiguous()
        shaped = weight.T.reshape(-1, *self.shape.kernel_size, self.shape.in_channels)
        return shaped.permute(0, 3, 1, 2).contiguous()


def _ridge_solution(xx: Tensor, xy: Tensor, ridge: float) -> Tensor:
    """Return (XX + λI)⁻¹XY; `xx` is as before afterwards."""
    scale = float(xx.diagonal().mean())
    if scale == 0.0:  # the input never varies: the bias says it all
        return torch.zeros_like(xy)
    diagonal = xx.diagonal().clone()
    for strength in (ridge, *(more for more in _STRONGER if more > ridge)):
        xx.diagonal().copy_(diagonal + strength * scale)
        factor, failed = torch.linalg.cholesky_ex(xx)
        if not int(failed):
            break
    xx.diagonal().copy_(diagonal)
    return torch.cholesky_solve(xy, factor)


class _Patches:
    """The patches of a batch of images, gathered for chosen output positions only."""

    def __init__(self, images: Tensor, shape: LayerShape) -> None:
        top, left = shape.padding
        padded = F.pad(images, (left, left, top, top)) if top or left else images
        rows = padded.permute(0, 2, 3, 1)  # [N, H, W, C]: a view where memory is channels-last
        self._flat = rows.reshape(-1, images.shape[1])
        height, width = rows.shape[1:3]
        kernel, dilation = shape.kernel_size, shape.dilation
        extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        self._height, self._width = height, width
        self._stride = shape.stride
        self._out = (
            (height - extent[0]) // shape.stride[0] + 1,
            (width - extent[1]) // shape.stride[1] + 1,
        )
        down = torch.arange(kernel[0], device=images.device) * (dilation[0] * width)
        right = torch.arange(kernel[1], device=images.device) * dilation[1]
        self._offsets = (down[:, None] + right).flatten()

    def rows(self, positions: Tensor) -> Tensor:
        """Return [n, kernel height · kernel width · channels] for positions in [N, H, W] order."""
        area = self._out[0] * self._out[1]
        image, within = positions // area, positions % area
        y = within // self._out[1] * self._stride[0]
        x = within % self._out[1] * self._stride[1]
        first = (image * self._height + y) * self._width + x
        index = (first[:, None] + self._offsets).flatten()
        return self._flat.index_select(0, index).reshape(len(positions), -1)
