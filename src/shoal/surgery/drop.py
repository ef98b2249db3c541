"""Drop: take a residual branch out, so that its shortcut alone remains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import ConfigError
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.network.blocks import Block
from shoal.network.cleanup import remove_dead_
from shoal.network.runner import Tap, listen
from shoal.network.weights import own_tensors
from shoal.surgery.names import named_once

__all__ = ["branch_parameters", "check_removable", "drop_", "zero_out_"]


def drop_(network: Network, names: Sequence[str] | str) -> Network:
    """Remove residual branches, in place, and record it in the plan.

    The branch goes, with its layers and their `state_dict` keys; the shortcut stays. What remains
    keeps its weights and names. The network then computes what it computed before with the
    branch's output multiplied by zero (Jordao et al. 2023, A.1: yᵢ = yᵢ₋₁), and any order of drops
    gives the same network. A block inside a dropped branch goes with it.

    Args:
        network: the captured network.
        names: the blocks (see `network.blocks`), or one block.

    Returns:
        The network itself.

    Raises:
        NameNotFoundError: a block does not exist; names the nearest ones.
        ConfigError: a block cannot be removed (with the reason), or is named twice. The network
            is then as it was.

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
        >>> net = shoal.drop_(net, ["layer1.1", "layer2.1"])
        >>> [block.name for block in net.blocks]
        ['layer1.0', 'layer1.2', 'layer2.0', 'layer2.2']
    """
    chosen = named_once(names)
    blocks = _blocks(network, chosen)
    if blocks:
        # Places are noted before anything changes: an operand may be an addition that goes as well.
        places = [(b.addition, 0 if b.addition.args[0] is b.shortcut else 1) for b in blocks]
        for addition, place in places:
            shortcut: Any = addition.args[place]
            addition.replace_all_uses_with(shortcut)
        remove_dead_(network)
        network.plan.record("drop", tuple(chosen))
    return network


def zero_out_(network: Network, names: Sequence[str] | str) -> Network:
    """Set all weights of residual branches to zero, in place: the scheme that saves no time.

    It is here for comparison (Jordao et al. 2023, A.1, "the widely employed zeroed-out scheme"):
    the output is that of `drop_`, the cost that of the dense network. Only weights change, so
    nothing is recorded in the plan; `shoal.save` keeps the zeros as it keeps all weights, and
    fine-tuning may fill them again.

    Args:
        network: the captured network.
        names: the blocks, or one block.

    Returns:
        The network itself.

    Raises:
        NameNotFoundError: a block does not exist; names the nearest ones.
        ConfigError: a block cannot be removed, is named twice, or gives something other than zero
            with weights of zero. The network is then as it was.

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet().eval(), torch.randn(2, 1, 8, 8))
        >>> dropped, zeroed = shoal.drop_(net.copy(), "layer1.1"), shoal.zero_out_(net, "layer1.1")
        >>> torch.equal(dropped(images := torch.randn(5, 1, 8, 8)), zeroed(images))
        True
    """
    blocks = _blocks(network, named_once(names))
    weights = {id(w): w for block in blocks for w in branch_parameters(network, block)}.values()
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
    return network


def check_removable(block: Block) -> None:
    """Raise `ConfigError` with the reason unless the block can be removed."""
    if not block.removable:
        raise ConfigError(f"block '{block.name}' cannot be removed: {block.reason}")


def branch_parameters(network: Network, block: Block) -> list[nn.Parameter]:
    """Return the parameters that a block's branch uses, each once."""
    used = [t for node in block.branch for t in own_tensors(node, network).values()]
    return list(
        {id(tensor): tensor for tensor in used if isinstance(tensor, nn.Parameter)}.values()
    )


def _blocks(network: Network, names: Sequence[str]) -> list[Block]:
    """Return the named blocks, in the order of the graph."""
    for name in names:
        check_removable(network.block(name))
    return [block for block in network.blocks if block.name in names]


def _not_zero(network: Network, blocks: Sequence[Block]) -> str | None:
    """Return the first block whose branch gives something other than zero, on random inputs."""
    wrong: list[str] = []

    def check(name: str, value: Tensor) -> None:
        if bool((value != 0).any()):
            wrong.append(name)

    taps = [Tap(b.output, (b.output,), partial(check, b.name)) for b in blocks]
    args, kwargs = network.example_inputs()
    with eval_mode(network), listen(network, taps):
        network(*args, **kwargs)
    return wrong[0] if wrong else None
