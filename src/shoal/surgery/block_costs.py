"""What each residual block costs: its share of the work and parameters, and the time it takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import sub
from statistics import median
from typing import Any

from shoal.measure.latency import measure_latency
from shoal.measure.macs import count_node_macs, count_params
from shoal.network import Network
from shoal.network.inputs import Inputs
from shoal.runtimes import EAGER
from shoal.surgery.drop import branch_parameters, check_removable, drop_

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
    inputs: Inputs | None = None,
    names: Sequence[str] | None = None,
    *,
    latency: bool = True,
    repeats: int = 10,
    min_seconds: float = 0.0,
    runtime: str = EAGER,
) -> dict[str, BlockCost]:
    """Count what dropping each block saves, and measure it.

    MACs and parameters are those of the branch. Latencies of the network and of copies without
    each block, which share its weights, are measured in the same interleaved rounds and compared
    round by round. The network is left as it is.

    Args:
        network: the captured network.
        inputs: one batch: a tensor, a tuple of them, or a dict of keyword inputs; None for one
            sample of what the network takes.
        names: the blocks; None for all that can be removed.
        latency: whether to measure latency, which takes a few seconds.
        repeats: number of rounds.
        min_seconds: rounds go on for at least this long, in seconds.
        runtime: where latency is measured, "eager" or "onnxruntime".

    Returns:
        The costs by block, in the order of the forward pass.

    Raises:
        NameNotFoundError: a block does not exist.
        ConfigError: a block cannot be removed, or the network cannot be called with the inputs.

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
        >>> costs = shoal.block_costs(net, latency=False)
        >>> f"{costs['layer1.1'].macs:,} MACs, {costs['layer1.1'].macs_percent:.1f} %"
        '294,912 MACs, 17.2 %'
    """
    for name in names or ():
        check_removable(network.block(name))
    blocks = [b for b in network.blocks if (b.removable if names is None else b.name in names)]
    if inputs is None:
        args, kwargs = network.example_inputs(1)
        inputs = kwargs or args
    by_node, params = count_node_macs(network, inputs), count_params(network)
    macs = sum(by_node.values())
    saved_ms: dict[str, float] = {}
    whole_ms = 0.0
    if latency and blocks:
        models = {"": network, **{b.name: _without(network, b.name) for b in blocks}}
        times = measure_latency(
            models, inputs, runtime=runtime, repeats=repeats, min_seconds=min_seconds
        )
        whole = times.pop("")
        whole_ms = whole.median_ms
        for name, without in times.items():
            saved_ms[name] = median(map(sub, whole.rounds_ms, without.rounds_ms))
    costs = {}
    for block in blocks:
        name = block.name
        own_macs = sum(by_node.get(node.name, 0) for node in block.branch)
        own_params = sum(p.numel() for p in branch_parameters(network, block))
        costs[name] = BlockCost(
            macs=own_macs,
            macs_percent=100.0 * own_macs / max(1, macs),
            params=own_params,
            params_percent=100.0 * own_params / max(1, params),
            latency_ms=saved_ms.get(name),
            latency_percent=100.0 * saved_ms[name] / whole_ms if name in saved_ms else None,
        )
    return costs


def _without(network: Network, name: str) -> Network:
    """Return a copy without the block, which shares all weights."""
    tensors = (*network.parameters(), *network.buffers())
    return drop_(copy.deepcopy(network, {id(tensor): tensor for tensor in tensors}), name)
