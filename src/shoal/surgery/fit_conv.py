"""Fit one convolution or linear layer to a map that is only known by what goes in and comes out.

With X the patches of the input (one row per output position) and Y the output, both about their
means, the weights W = (XᵀX + λI)⁻¹XᵀY have the least squared error (ridge regression; for
transformer blocks: ReplaceMe, Shopkhoev et al. 2025). XᵀX and XᵀY are added up while the data
stream by, in float32 and, after a few thousand rows at most, in float64; the solve is a Cholesky
factorisation in float64. XᵀX is symmetric: only what lies below its diagonal is multiplied out.

Memory, for d columns (kernel area · input channels) and m output channels: 10·d² + 8·d·m bytes
while the data stream, 16·d·(d + m) while solving, and at most about 200 MiB for chunks. 512
channels with a 3×3 kernel (d = 4,608) take 0.6 GiB in all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.network.reach import LayerShape

RIDGE = 1e-5  # of the mean variance of a column; enough to keep dead and doubled channels harmless
_STRONGER = (1e-9, 1e-7, 1e-5, 1e-3, 1e-1)  # tried in turn where the matrix is singular
_CHUNK = 1 << 23  # entries of X at a time: 32 MiB
_STRIP = 512  # rows of XᵀX that are multiplied out together, up to the diagonal
_SMALL = 1024  # columns up to which strips would save too little
_ROWS_IN_FLOAT32 = 2048  # that are added up before the strips go to float64
_SPREAD = 2654435761  # a large prime (Knuth, multiplicative hashing)


@dataclass(frozen=True)
class FittedLayer:
    """A fitted layer; tensors are float64.

    The residual is the expected squared error over the variance of the target, summed over
    channels: 0 is exact, 1 is no better than a constant. It is corrected for the number of weights,
    which flatter a fit on few positions.
    """

    shape: LayerShape
    weight: Tensor  # as the layer's own: [out, in, kernel height, kernel width] or [out, in]
    bias: Tensor  # [out]
    residual: float
    mean: Tensor  # of what it gives, about: [out]
    variance: Tensor  # the same
    rows: int  # positions it was fitted on
    samples: int  # that they were taken from

    def layer(self, like: Tensor) -> nn.Conv2d | nn.Linear:
        """Return it as a module, with the device and dtype of `like`, and its memory format."""
        made = self.shape.make(device=like.device, dtype=like.dtype)
        if self.weight.dim() == 4 and like.dim() == 4 and not like.is_contiguous():
            made.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made.load_state_dict({"weight": self.weight, "bias": self.bias})
        return made

    def norm(self, like: Tensor) -> nn.BatchNorm2d:
        """Return a batch norm that leaves what the layer gives as it is, until it is trained."""
        made = nn.BatchNorm2d(self.shape.out_channels, device=like.device, dtype=like.dtype)
        mean, variance = self.mean.to(like), self.variance.to(like)
        state = {"weight": (variance + made.eps).sqrt(), "bias": mean}
        state |= {"running_mean": mean, "running_var": variance}
        made.load_state_dict(state, strict=False)
        return made


class LayerMoments:
    """Adds up what the fit of one layer needs, from batches of input and output.

    It uses about so many rows, positions drawn at random; None for `shape.rows`. Samples are how
    many there will be; None, for not known, reckons with 256. Messages tell the name.
    """

    def __init__(
        self, shape: LayerShape, *, samples: int | None, rows: int | None = None, name: str = ""
    ) -> None:
        self.shape = shape
        self.name = name
        self._per_sample = math.ceil((rows or shape.rows) / (samples or 256))
        self._count = 0
        self._samples = 0
        self._pilot: tuple[Tensor, Tensor] | None = None  # about which sums are taken: [d], [m]
        # x [d], y [m], xx [d, d] (until `finish` its strips alone), xy [d, m], yy [m]
        self._sums: tuple[Tensor, ...] = ()
        self._height = shape.columns if shape.columns <= _SMALL else _STRIP
        self._strips: list[Tensor] = []  # of xx, in float32: what is not yet in the sums
        self._in_strips = 0  # rows

    def add(self, inputs: Tensor, outputs: Tensor, keys: Tensor | None = None) -> None:
        """Add a batch: inputs [N, C, H, W], or [N, …, C] for a linear layer, and its outputs.

        Keys are an integer for each sample, as `sample_keys` gives them, which decides which of its
        positions are used; N may be a multiple of their number, as of windows. None takes the
        sample's number in the batch.
        """
        inputs, outputs = inputs.detach(), outputs.detach()
        self._samples += len(inputs)
        rows: Callable[[Tensor], Tensor]
        if self.shape.kernel_size:
            rows = _patches(inputs, self.shape)
            outputs = outputs.permute(0, 2, 3, 1)
        else:
            rows = partial(inputs.reshape(-1, inputs.shape[-1]).index_select, 0)
        targets = outputs.reshape(-1, outputs.shape[-1])
        chosen = self._choose(len(targets), len(inputs), keys, inputs.device)
        for part in chosen.split(max(256, _CHUNK // self.shape.columns)):
            self._add_rows(rows(part), targets.index_select(0, part))

    def _choose(
        self, positions: int, samples: int, keys: Tensor | None, device: torch.device
    ) -> Tensor:
        """Return the positions to use: some of each sample, by its key, however it is batched."""
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

    def _add_rows(self, x: Tensor, y: Tensor) -> None:
        """Add rows [n, d] and [n, m], which are overwritten, to the sums."""
        x, y = x.float(), y.float()
        if self._pilot is None:
            self._pilot = x.mean(0), y.mean(0)
            self._sums = self._zeros(x.device)
            firsts = range(0, x.shape[1], self._height)
            ends = [min(first + self._height, x.shape[1]) for first in firsts]
            self._strips = [x.new_zeros(e - f, e) for f, e in zip(firsts, ends, strict=True)]
        x -= self._pilot[0]
        y -= self._pilot[1]
        sum_x, sum_y, _, sum_xy, sum_yy = self._sums
        sum_x += x.sum(0)
        sum_y += y.sum(0)
        sum_xy += x.T @ y
        sum_yy += y.square_().sum(0)
        self._count += len(x)
        for first, strip in zip(range(0, x.shape[1], self._height), self._strips, strict=True):
            columns = slice(first, first + len(strip))
            torch.addmm(strip, x[:, columns].T, x[:, : strip.shape[1]], out=strip)
        self._in_strips += len(x)
        if len(self._strips) == 1 or self._in_strips >= _ROWS_IN_FLOAT32:
            self._empty_strips()

    def _empty_strips(self) -> None:
        """Move what the strips hold to the sums."""
        xx = self._sums[2]
        for first, strip in zip(range(0, len(xx), self._height), self._strips, strict=True):
            xx[first : first + len(strip), : strip.shape[1]] += strip
            strip.zero_()
        self._in_strips = 0

    def _zeros(self, device: torch.device) -> tuple[Tensor, ...]:
        d, m = self.shape.columns, self.shape.out_channels
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sizes = [(d,), (m,), (d, d), (d, m), (m,)]
        return tuple(torch.zeros(size, dtype=dtype, device=device) for size in sizes)

    @property
    def spare(self) -> int:
        """By how many the positions exceed the weights per output channel; a fit needs one."""
        return self._count - self.shape.columns - 1

    def finish(self) -> None:
        """Sum over processes, and move the sums from the pilot means to the means of all rows."""
        if self._pilot is None:  # this process had no batch
            self._pilot = torch.zeros(self.shape.columns), torch.zeros(self.shape.out_channels)
            self._sums = self._zeros(torch.device("cpu"))
        if self._in_strips:
            self._empty_strips()
        self._strips = []
        px, py = (p.to(self._sums[0].dtype) for p in self._pilot)
        x, y, xx, xy, yy = self._sums
        for first in range(0, len(xx), self._height):  # what lies above the diagonal
            rows = slice(first, first + self._height)
            xx[:first, rows] = xx[rows, :first].T
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

        `ridge` is λ as a part of the mean squared deviation of a column; None for 1e-5.

        Raises:
            ConfigError: there are fewer positions than weights per output channel.
            TrainingError: the activations are not finite.
        """
        assert self._pilot is not None
        (mean_x, mean_y), (_, _, xx, xy, yy) = self._pilot, self._sums
        if not bool(xx.diagonal().isfinite().all() & yy.isfinite().all()):
            raise TrainingError(
                f"the activations at '{self.name}' are not finite: the network's weights or its "
                "data are broken; check them first"
            )
        if self.spare <= 0:
            raise ConfigError(
                f"'{self.name}' has {self._count} positions to fit {self.shape.columns} weights "
                "per channel on: give more samples or a smaller kernel_size"
            )
        weight = _ridge_solution(xx, xy, RIDGE if ridge is None else ridge)
        explained = (weight * (xx @ weight)).sum(0)
        lost = yy.sum() - 2 * (weight * xy).sum() + explained.sum()
        variance = float(yy.sum())
        share = max(0.0, float(lost)) / variance if variance > 0 else 0.0
        # Columns are (position in the kernel, channel).
        kernel = weight.T.reshape(-1, *self.shape.kernel_size, self.shape.in_channels)
        return FittedLayer(
            shape=self.shape,
            weight=kernel.movedim(-1, 1).contiguous().cpu(),
            bias=(mean_y - mean_x @ weight).cpu(),
            residual=share * (self._count - 1) / self.spare,
            mean=mean_y.cpu(),
            variance=(explained / self._count).clamp(min=0.0).cpu(),
            rows=self._count,
            samples=self._samples,
        )


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


def _patches(images: Tensor, shape: LayerShape) -> Callable[[Tensor], Tensor]:
    """Return what gives the patches, [n, kernel area · channels], at positions in [N, H, W]."""
    top, left = shape.padding
    padded = F.pad(images, (left, left, top, top)) if top or left else images
    flat = padded.permute(0, 2, 3, 1).reshape(-1, images.shape[1])  # a view if channels-last
    height, width = padded.shape[2:]
    sizes = zip((height, width), shape.kernel_size, shape.dilation, shape.stride, strict=True)
    rows_out, columns_out = ((n - d * (k - 1) - 1) // s + 1 for n, k, d, s in sizes)
    taps = zip(shape.kernel_size, shape.dilation, strict=True)
    down, right = (torch.arange(k, device=images.device) * d for k, d in taps)
    offsets = (down[:, None] * width + right).flatten()

    def rows(positions: Tensor) -> Tensor:
        image, within = positions // (rows_out * columns_out), positions % (rows_out * columns_out)
        y = within // columns_out * shape.stride[0]
        x = within % columns_out * shape.stride[1]
        first = (image * height + y) * width + x
        index = (first[:, None] + offsets).flatten()
        return flat.index_select(0, index).reshape(len(positions), -1)

    return rows
