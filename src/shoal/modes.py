"""A network's mode and device, changed for a while and restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_flags(network: nn.Module) -> Iterator[None]:
    """Restore every module's training flag at the end: a frozen norm may have its own."""
    flags = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put the network in eval mode for a while."""
    with kept_flags(network):
        network.eval()
        yield


@contextmanager
def placed(network: nn.Module, device: torch.device | str | None) -> Iterator[torch.device]:
    """Put the network on `device` for a while; None leaves it. Gives the device it is on."""
    home = device_of(network)
    if device is None:
        yield home
        return
    network.to(device)
    try:
        yield torch.device(device)
    finally:
        network.to(home)


def device_of(network: nn.Module) -> torch.device:
    """Return the device of the network's first parameter or buffer; the CPU if it has none."""
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(network: nn.Module) -> torch.dtype | None:
    """Return the floating type of all weights; None where there are several, or no weights."""
    types = {p.dtype for p in network.parameters() if p.dtype.is_floating_point}
    return types.pop() if len(types) == 1 else None


def is_channels_last(network: nn.Module) -> bool:
    """Whether 4-D weights are held in channels_last memory format; 1×1 kernels do not tell."""
    images = (p for p in network.parameters() if p.dim() == 4 and not p.is_contiguous())
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in images)


def make_channels_last(network: nn.Module) -> None:
    """Store the network's 4-D weights channels-last; their values and shapes stay."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
