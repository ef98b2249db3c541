"""Linearize: put a fitted line, the identity, or a module of one's own in a rectifier's place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import ConfigError, OptionError, TrainingError
from shoal.network import Network, Operation, Site
from shoal.network.modules import (
    Blend,
    ByChannel,
    Formula,
    Line,
    Maximum0,
    SharedPReLU,
    Swish,
    Threshold0,
)
from shoal.network.ops import name_of
from shoal.network.rewrite import adopt_shared
from shoal.passes.batches import Observer, observe
from shoal.passes.states import chunks_of_parts

_KINDS: Mapping[type, str] = {
    nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardtanh: "hardtanh", nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu", SharedPReLU: "prelu", nn.RReLU: "rrelu", nn.ELU: "elu", nn.SELU: "selu",
    nn.CELU: "celu", nn.GELU: "gelu", nn.SiLU: "silu", Swish: "silu", nn.Hardswish: "hardswish",
    nn.Mish: "mish", nn.Softplus: "softplus", Maximum0: "relu", Threshold0: "relu",
    nn.Threshold: "relu",
}  # fmt: skip
_CHUNK = 1 << 17  # entries; 1 MiB of float64, which stays in a CPU's cache


def fit_lines(
    network: Network,
    loader: Iterable[Any],
    names: Sequence[str] | None = None,
    *,
    samples: int | None = None,
) -> dict[str, FittedLine]:
    """Fit the least-squares line of each site's rectifier, by its name, in one pass over the data.

    The data are unshuffled and without augmentation; only so many samples of them are used. By
    default lines are fitted to all sites that still have their rectifier.

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
        >>> shoal.linearize_(net, ["1"], lines=lines)
        [Operation(kind='linearize', names=('1',), options={'how': 'line'})]
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
) -> list[Operation]:
    """Replace the rectifiers of sites by linear maps, in place.

    Returns what the plan records of it.

    Args:
        network: the captured network.
        names: the sites, or one site.
        how: "line" puts the per-channel line a·z + b fitted to the rectifier (trainable
            afterwards), "identity" passes z as it is (EASIER as published).
        loader: the data that lines are fitted on, unshuffled and without augmentation.
        samples: fit on this many samples only.
        lines: lines made before (`fit_lines`, or `norm_lines`, which needs no data), in place of
            `loader`; they are copied. Sites that have none are fitted on `loader`.

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

        >>> operations = shoal.linearize_(net, ["1"], loader=[torch.randn(64, 4)])
        >>> net.site("1").linearized, net.plan.names("linearize")
        ('line', ['1'])
    """
    if how not in ("line", "identity"):
        raise OptionError("how", how, "'line' or 'identity'")
    chosen = named_once(names)
    sites = [_with_rectifier(network, name) for name in chosen]
    fitted = dict(lines or {})
    missing = [name for name in chosen if name not in fitted]
    if how == "line" and missing:
        if loader is None:
            raise ConfigError(
                f"how='line' needs a line for site '{missing[0]}': give loader= to fit it to data, "
                "or a line for it in lines=, or use how='identity'"
            )
        fitted |= fit_lines(network, loader, missing, samples=samples)
    put = [(s, _checked(s, fitted[s.name]) if how == "line" else None) for s in sites]
    for site, line in put:
        put_linear_(network, site, line)
    return [network.plan.record("linearize", tuple(chosen), how=how)] if sites else []


def _checked(site: Site, line: FittedLine) -> FittedLine:
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
    return line


def replace_(network: Network, modules: Mapping[str, nn.Module]) -> list[Operation]:
    """Put modules in the place of sites' rectifiers, in place.

    The modules come by the names of the sites; each maps a tensor to one of the same shape, and is
    of a type that a saved network can hold, such as nn.PReLU. A site keeps its name, and may be
    linearized later; its kind is the new rectifier's. Returns what the plan records of it.

    Raises:
        NameNotFoundError: a site does not exist; tells the nearest.
        ConfigError: a site is linearized already, or a module's type cannot be saved.
    """
    sites = [_with_rectifier(network, name) for name in modules]
    types = {name: name_of(type(module)) for name, module in modules.items()}
    for name, known in types.items():
        if known is None:
            raise ConfigError(
                f"a {type(modules[name]).__name__} cannot be saved: register its type by "
                "shoal.register_op, or take a module of PyTorch"
            )
    for site in sites:
        put_module(network, site, modules[site.name])
        network.name_rectifier(site.name, _kind_of(modules[site.name], site.kind))
    return [network.plan.record("replace", tuple(types), modules=types)] if sites else []


def _kind_of(module: nn.Module, before: str) -> str:
    """Return what kind of rectifier a module is, in the place of one of another kind."""
    if isinstance(module, nn.Identity | Line | Blend | ByChannel | Formula):
        return before  # it becomes linear, at once or by and by; or has its own formula again
    if before == "rrelu" and type(module) is nn.LeakyReLU:
        return before  # as it is outside training
    kind = next((_KINDS[base] for base in type(module).__mro__ if base in _KINDS), "custom")
    high = getattr(module, "high", None) if kind == "relu" else getattr(module, "max_val", None)
    return kind if high is None else "relu6" if high == 6 else "hardtanh"


def put_linear_(network: Network, site: Site, line: FittedLine | None) -> None:
    """Put a line, or the identity for None, where the site's rectifier is; not recorded."""
    made = nn.Identity() if line is None else line.layer(like_of(network), site.channel_dim)
    put_module(network, site, made)


def named_once(names: Sequence[str] | str) -> list[str]:
    """Return the names as a list; raises `ConfigError` if one is given twice."""
    chosen = [names] if isinstance(names, str) else list(names)
    twice = next((name for name in chosen if chosen.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"'{twice}' is named twice: name each once")
    return chosen


def _with_rectifier(network: Network, name: str) -> Site:
    site = network.site(name)
    if site.linearized is not None:
        raise ConfigError(f"site '{site.name}' is linearized already: leave it out")
    return site


def like_of(network: Network) -> Tensor:
    """Return a tensor that has the network's device and type."""
    return next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))


def put_module(network: Network, site: Site, module: nn.Module) -> None:
    """Put a module where the site's rectifier is, on the network's device; not recorded."""
    old, like = network.get_submodule(site.name), like_of(network)
    module = module.to(like.device, like.dtype).train(old.training)
    part: Any
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # others may read what it reads, and files do not keep it
    network.replace_module(site.name, module)
    adopt_shared(network)


@dataclass(frozen=True)
class FittedLine:
    """A fitted line per channel."""

    slope: Tensor  # [channels], float64, as the intercept
    intercept: Tensor  # in units of the rectifier's output
    residual: float  # the mean squared error over the variance of the rectifier's output, 0 to 1

    def layer(self, like: Tensor, channel_dim: int) -> Line:
        """Return it as a module, with the device and dtype of `like`."""
        parts = self.slope, self.intercept
        slope, intercept = (v.detach().to(like.device, like.dtype, copy=True) for v in parts)
        return Line(slope, intercept, channel_dim)


class LineMoments(Observer):
    """Collects what the fit of each site's line needs; of all that have their rectifier by default.

    With z the rectifier's input and r its output, the line a·z + b with the least mean squared
    error is a = cov(z, r) / var(z), b = mean(r) − a·mean(z). Sums are taken about pilot means (of
    the first entries seen) and in float64, so that a large mean does not cost the variance its
    digits, and so that it does not matter which process saw what.

    About so many `positions` of each batch are used, spread evenly over samples and image and
    others in each batch; None uses all. A few thousand fix two numbers per channel to a fraction of
    a percent and save nearly all of the time.
    """

    in_pieces = True

    def __init__(self, names: Sequence[str] | None = None, *, positions: int | None = None) -> None:
        self._names = None if names is None else set(names)
        self._positions = positions
        self._batch = (0, 0)  # index and size of the present one
        self._piece = (0, 0)  # of that batch: first sample and size
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
            had = missing or network.sites
            raise ConfigError(f"{what} has no rectifier{' left' * bool(had)} to fit a line to")
        return [
            network.get_submodule(site.name).register_forward_hook(partial(self._collect, site))
            for site in self._sites
        ]

    @override
    def begin(self, index: int, batch: Batch) -> None:
        self._batch = (index, batch.size)

    @override
    def piece(self, first: int, size: int) -> None:
        self._piece = (first, size)

    def _collect(
        self, site: Site, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        z, r = (value.detach().movedim(site.channel_dim, -1) for value in (inputs[0], output))
        if self._positions is not None:
            z, r = self._spread(z, r, self._positions)
        for dz, dr in _rows_in_chunks(z, r):
            if site.name not in self._sums:
                self._pilots[site.name] = torch.stack([dz.mean(0), dr.mean(0)])
                self._sums[site.name] = dz.new_zeros((6, dz.shape[1]))
            pilot, sums = self._pilots[site.name], self._sums[site.name]
            dz -= pilot[0]
            dr -= pilot[1]
            sums[0] += len(dz)
            sums[1] += dz.sum(0)
            sums[2] += dr.sum(0)
            sums[4] += (dz * dr).sum(0)
            sums[3] += dz.square_().sum(0)
            sums[5] += dr.square_().sum(0)

    def _spread(self, z: Tensor, r: Tensor, positions: int) -> tuple[Tensor, Tensor]:
        """Return about this many positions of both, as [samples, places, channels]."""
        z, r = (v.flatten(1, -2) if v.dim() > 2 else v.reshape(-1, 1, v.shape[-1]) for v in (z, r))
        (index, size), (first, count) = self._batch, self._piece
        rows = z.shape[0] * size // count  # of the whole batch
        step = max(1, rows * z.shape[1] // positions)
        along = min(step, z.shape[1])  # first fewer places of each sample, then fewer samples
        across = max(1, step // max(1, along))
        start = (index - first * rows // size) % across
        chosen = slice(start, None, across), slice(index % along, None, along)
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

    def inputs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and deviation of each site's input, float64 [channels]."""
        sums = {site.name: self._sums[site.name] for site in self._sites}
        return {name: (s[1], (s[3] / s[0]).clamp(min=0).sqrt()) for name, s in sums.items()}

    def lines(self) -> dict[str, FittedLine]:
        """Return the fitted line of each site.

        A channel whose input never varies gets slope 0 and the constant output as intercept.
        """
        return {site.name: _fit(site.name, self._sums[site.name]) for site in self._sites}


def _fit(name: str, sums: Tensor) -> FittedLine:
    n, mean_z, mean_r, zz, zr, rr = sums
    if not bool(sums.isfinite().all()):
        raise TrainingError(
            f"the activations at site '{name}' are not finite: the network's weights or its data "
            "are broken; check them first"
        )
    # What rounding alone may leave of a constant input's variance.
    constant = zz <= n * mean_z.square() * 1e-28
    slope = torch.where(constant, torch.zeros_like(zr), zr / zz.where(~constant, 1.0))
    lost, total = float((rr - slope * zr).clamp(min=0).sum()), float(rr.sum())
    return FittedLine(slope, mean_r - slope * mean_z, lost / total if total > 0 else 0.0)


def _rows_in_chunks(z: Tensor, r: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield fresh copies of pieces of both, as [positions, channels] in float64."""
    if z.numel() == 0:
        return
    dtype = torch.float32 if z.device.type == "mps" else torch.float64  # it has no float64
    both = (chunks_of_parts(value, 1, _CHUNK) for value in (z, r))
    for (_, _, z_part), (_, _, r_part) in zip(*both, strict=True):
        z_rows, r_rows = (v.reshape(-1, v.shape[-1]) for v in (z_part, r_part))
        yield z_rows.to(dtype, copy=True), r_rows.to(dtype, copy=True)
