"""Drop: take a residual branch out, so that its shortcut alone remains; and what that saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import sub
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError
from shoal.measure.deployment import Batches, Runtimes, deployments, measure_in
from shoal.measure.size import count_node_macs, count_params
from shoal.modes import eval_mode
from shoal.network import Network, Operation
from shoal.network.blocks import Block
from shoal.network.flow import own_tensors
from shoal.network.inputs import Inputs, batch_size
from shoal.network.rewrite import remove_dead_
from shoal.network.runner import Tap, listen
from shoal.runtimes import EAGER
from shoal.surgery.linearize import named_once


def drop_(network: Network, names: Sequence[str] | str) -> list[Operation]:
    """Remove residual branches, in place, and record it in the plan.

    The branch goes, with its layers and their `state_dict` keys; the shortcut stays. What remains
    keeps its weights and names. The network then computes what it computed before with the
    branch's output multiplied by zero (Jordao et al. 2023, A.1: yᵢ = yᵢ₋₁), and any order of drops
    gives the same network. A block inside a dropped branch goes with it. The names are those of
    `network.blocks`, or one of them. Returns what the plan records.

    Raises:
        NameNotFoundError: a block does not exist; names the nearest ones.
        ConfigError: a block cannot be removed (with the reason), or is named twice. The network
            is then as it was.

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
        >>> shoal.drop_(net, ["layer1.1", "layer2.1"])
        [Operation(kind='drop', names=('layer1.1', 'layer2.1'), options={})]
        >>> [block.name for block in net.blocks]
        ['layer1.0', 'layer1.2', 'layer2.0', 'layer2.2']
    """
    chosen = named_once(names)
    blocks = _blocks(network, chosen)
    if not blocks:
        return []
    # Places are noted before anything changes: an operand may be an addition that goes as well.
    places = [(b.addition, 0 if b.addition.args[0] is b.shortcut else 1) for b in blocks]
    for addition, place in places:
        shortcut: Any = addition.args[place]
        addition.replace_all_uses_with(shortcut)
    remove_dead_(network)
    return [network.plan.record("drop", tuple(chosen))]


def zero_out_(network: Network, names: Sequence[str] | str) -> None:
    """Set all weights of residual branches to zero, in place: the scheme that saves no time.

    It is here for comparison (Jordao et al. 2023, A.1, "the widely employed zeroed-out scheme"):
    the output is that of `drop_`, the cost that of the dense network. Only weights change, so
    nothing is recorded in the plan; `shoal.save` keeps the zeros as it keeps all weights, and
    fine-tuning may fill them again.

    Raises:
        NameNotFoundError: a block does not exist; names the nearest ones.
        ConfigError: a block cannot be removed, is named twice, or gives something other than zero
            with weights of zero. The network is then as it was.

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet().eval(), torch.randn(2, 1, 8, 8))
        >>> dropped, images = net.copy(), torch.randn(5, 1, 8, 8)
        >>> operations = shoal.drop_(dropped, "layer1.1")
        >>> shoal.zero_out_(net, "layer1.1")
        >>> torch.equal(dropped(images), net(images))
        True
    """
    blocks = _blocks(network, named_once(names))
    weights = {id(w): w for block in blocks for w in _parameters(network, block)}.values()
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
        wrong = _not_zero(network, blocks) if blocks else None
        if wrong is not None:
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
            raise ConfigError(
                f"block '{wrong}' gives something other than zero when its weights are zero: drop "
                "it instead"
            )


def _parameters(network: Network, block: Block) -> list[nn.Parameter]:
    """Return the parameters that a block's branch uses, each once."""
    used = (t for node in block.branch for t in own_tensors(node, network).values())
    return list({id(t): t for t in used if isinstance(t, nn.Parameter)}.values())


def _blocks(network: Network, names: Sequence[str]) -> list[Block]:
    """Return the named blocks, in the order of the graph."""
    for block in map(network.block, names):
        if not block.removable:
            raise ConfigError(f"block '{block.name}' cannot be removed: {block.reason}")
    return [block for block in network.blocks if block.name in names]


def _not_zero(network: Network, blocks: Sequence[Block]) -> str | None:
    """Return the first block whose branch gives something other than zero, on random inputs."""
    outputs: dict[str, Tensor] = {}
    taps = [Tap(b.output, (b.output,), partial(outputs.__setitem__, b.name)) for b in blocks]
    args, kwargs = network.example_inputs()
    with eval_mode(network), listen(network, taps):
        network(*args, **kwargs)
    return next((name for name, value in outputs.items() if bool((value != 0).any())), None)


@dataclass(frozen=True)
class BlockCost:
    """What dropping a block saves.

    Attributes:
        macs: multiply-accumulates of one sample.
        params: number of parameter elements.
        latency_ms: the median over rounds of the network's latency minus that without the block,
            in milliseconds per batch; around zero or below where nothing measurable is saved.
            None if it was not measured.
        macs_percent, params_percent, latency_percent: the same as a share of the network's.
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


# Long because each of its arguments is explained; the body is short.
def block_costs(
    network: Network,
    inputs: Inputs | None = None,
    names: Sequence[str] | None = None,
    *,
    latency: bool = True,
    repeats: int = 10,
    min_seconds: float = 0.0,
    runtime: Runtimes = EAGER,
    batch: Batches | None = None,
) -> dict[str, BlockCost]:
    """Count what dropping each block saves, and measure it.

    MACs and parameters are those of the branch. Latencies of the network and of copies without
    each block, which share its weights, are measured in the same interleaved rounds and compared
    round by round. The network is left as it is. Costs come in the order of the forward pass.

    Args:
        network: the captured network.
        inputs: a batch, as a tensor, tuple or dict of keyword inputs; None for one random sample.
        names: the blocks; None for all that can be removed.
        latency: whether to measure latency, which takes a few seconds.
        repeats: number of rounds.
        min_seconds: rounds go on for at least this long, in seconds.
        runtime: where latency is measured: "eager", "onnxruntime", …, or several. Latencies are
            then summed; a block's share of them is the mean of its shares.
        batch: batch size, or several; None takes that of the inputs.

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
    if names is None:
        blocks = [block for block in network.blocks if block.removable]
    else:
        blocks = _blocks(network, names)
    if inputs is None:
        inputs = network.example(1)
    by_node, params = count_node_macs(network, inputs), count_params(network)
    macs = sum(by_node.values())
    costs = {}
    for block in blocks:
        own_macs = sum(by_node.get(node.name, 0) for node in block.branch)
        own_params = sum(p.numel() for p in _parameters(network, block))
        shares = 100.0 * own_macs / max(1, macs), 100.0 * own_params / max(1, params)
        costs[block.name] = BlockCost(own_macs, shares[0], own_params, shares[1])
    if latency and blocks:
        models = {"": network, **{name: _without(network, name) for name in costs}}
        where = deployments(runtime, batch_size(inputs) if batch is None else batch)
        times = measure_in(where, models, inputs, repeats=repeats, min_seconds=min_seconds)
        whole_ms = sum(found[""].median_ms for found in times)
        for name in costs:
            saved = [median(map(sub, t[""].rounds_ms, t[name].rounds_ms)) for t in times]
            share = fmean(s / t[""].median_ms for s, t in zip(saved, times, strict=True))
            latency_ms = saved[0] if len(saved) == 1 else share * whole_ms
            costs[name] = replace(costs[name], latency_ms=latency_ms, latency_percent=100.0 * share)
    return costs


def _without(network: Network, name: str) -> Network:
    """Return a copy without the block, which shares all weights."""
    without = network.sharing_copy()
    drop_(without, name)
    return without
