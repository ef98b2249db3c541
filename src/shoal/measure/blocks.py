"""What each residual block costs: its share of the work and parameters, and the time it takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from shoal.errors import ConfigError, unknown_name
from shoal.measure._inputs import Inputs
from shoal.measure.latency_in import EAGER, latency_in
from shoal.measure.macs import count_macs, count_params
from shoal.network import Network
from shoal.surgery.drop import drop_

__all__ = ["BlockCost", "block_costs"]


@dataclass(frozen=True)
class BlockCost:
    """What dropping a block saves.

    Attributes:
        macs: multiply-accumulates of one sample.
        macs_percent: the same as a share of the network's, in percent.
        params: number of parameter elements.
        params_percent: the same as a share of the network's, in percent.
        latency_ms: the median over rounds of the network's latency minus that without the block,
            in milliseconds per batch; around zero or below where nothing measurable is saved.
            None if it was not measured.
        latency_percent: the same as a share of the network's median, in percent; or None.
    """

    macs: int
    macs_percent: float
    params: int
    params_percent: float
    latency_ms: float | None = None
    latency_percent: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return asdict(self)


def block_costs(
    network: Network,
    inputs: Inputs,
    names: Sequence[str] | None = None,
    *,
    latency: bool = True,
    repeats: int = 10,
    min_seconds: float = 0.0,
    max_seconds: float = 60.0,
    threads: int | None = None,
    channels_last: bool = True,
    runtime: str = EAGER,
) -> dict[str, BlockCost]:
    """Measure what dropping each block saves, by dropping it from a copy.

    MACs and parameters are counted; latencies of the network and of all its variants are measured
    in the same interleaved rounds, and compared round by round. The network is left as it is; the
    copies share its weights.

    Args:
        network: the captured network.
        inputs: one batch: a tensor, a tuple of them, or a dict of keyword inputs.
        names: the blocks; None for all that can be removed.
        latency: whether to measure latency, which takes a few seconds.
        repeats: number of rounds.
        min_seconds: rounds go on until they took so long together, in seconds.
        max_seconds: no round is started after so many seconds.
        threads: threads for PyTorch on the CPU; None leaves them (eager only).
        channels_last: run 4-D inputs in channels_last memory format (eager only).
        runtime: where latency is measured, "eager" or "onnxruntime".

    Returns:
        The costs by block, in the order of the forward pass.

    Raises:
        NameNotFoundError: a block does not exist.
        ConfigError: a block cannot be removed, or the network cannot be called with the inputs.
    """
    variants = {name: _without(network, name) for name in _chosen(network, names)}
    macs, params = count_macs(network, inputs).total, count_params(network)
    saved_ms: dict[str, float] = {}
    whole_ms = 0.0
    if latency and variants:
        models = {"": network, **variants}
        how: dict[str, Any] = {
            "repeats": repeats, "min_seconds": min_seconds, "max_seconds": max_seconds,
        }  # fmt: skip
        if runtime == EAGER:
            how |= {"threads": threads, "channels_last": channels_last}
        times = latency_in(runtime, models, inputs, **how)
        whole_ms, rounds = times[""].median_ms, times[""].rounds_ms
        for name in variants:
            pairs = zip(rounds, times[name].rounds_ms, strict=True)
            saved_ms[name] = median(whole - without for whole, without in pairs)
    costs = {}
    for name, variant in variants.items():
        own_macs = macs - count_macs(variant, inputs).total
        own_params = params - count_params(variant)
        costs[name] = BlockCost(
            macs=own_macs,
            macs_percent=100.0 * own_macs / max(1, macs),
            params=own_params,
            params_percent=100.0 * own_params / max(1, params),
            latency_ms=saved_ms.get(name),
            latency_percent=100.0 * saved_ms[name] / whole_ms if name in saved_ms else None,
        )
    return costs


def _chosen(network: Network, names: Sequence[str] | None) -> list[str]:
    blocks = {block.name: block for block in network.blocks}
    for name in names or ():
        if name not in blocks:
            raise unknown_name("block", name, blocks)
        if not blocks[name].removable:
            raise ConfigError(f"block '{name}' cannot be removed: {blocks[name].reason}")
    return [n for n, b in blocks.items() if (b.removable if names is None else n in names)]


def _without(network: Network, name: str) -> Network:
    """Return a copy without the block, which shares all weights."""
    tensors = (*network.parameters(), *network.buffers())
    return drop_(copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}), name)
