"""Eager mode: PyTorch runs a network layer by layer, in eval and inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from shoal.network.borrow import borrowed
from shoal.network.inputs import Inputs, as_call, home_device, map_tensors, tensors_of
from shoal.runtimes.runtime import EAGER, Runner, Runtime, register_runtime

__all__ = ["Eager"]


@register_runtime(EAGER)
class Eager(Runtime):
    """PyTorch, without a compiler. Modules are left exactly as they were."""

    name = EAGER

    @property
    @override
    def version(self) -> str:
        return torch.__version__

    @override
    def place(self, networks: Iterable[Any], inputs: Inputs) -> torch.device:
        if self.device is not None:
            return super().place(networks, inputs)
        modules = (network for network in networks if isinstance(network, nn.Module))
        first = next((module for module in modules if any(True for _ in module.parameters())), None)
        return home_device(first, inputs)

    @override
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> Runner:
        place = self.place([network], inputs)
        return _EagerRunner(network, place, self.threads, self.channels_last)


class _EagerRunner(Runner):
    def __init__(
        self, network: Any, place: torch.device, threads: int | None, channels_last: bool
    ) -> None:
        self.network = network
        self.place = place
        self.device = str(place)
        self.threads = threads if threads is not None else torch.get_num_threads()
        self.queue = None if place.type in ("cpu", "meta") else place
        self.channels_last = channels_last

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with borrowed(self.network, device=self.place) as lent, torch.inference_mode():
            return lent(*args, **kwargs)

    @override
    @contextmanager
    def ready(self, inputs: Inputs) -> Iterator[Callable[[], object]]:
        last = self.channels_last and any(t.dim() == 4 for t in tensors_of(inputs))
        with (
            _thread_count(self.threads),
            borrowed(self.network, device=self.place, channels_last=last) as lent,
        ):
            args, kwargs = as_call(_prepared(inputs, self.place, last))
            with torch.inference_mode():
                yield lambda: lent(*args, **kwargs)


def _prepared(inputs: Inputs, place: torch.device, channels_last: bool) -> Inputs:
    """Return copies of the inputs on the device, so that no network can change another's."""

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().to(place, copy=True)
        if channels_last and tensor.dim() == 4:
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    return map_tensors(copy, inputs)


@contextmanager
def _thread_count(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if threads != before:
            torch.set_num_threads(threads)
        yield
    finally:
        if threads != before:
            torch.set_num_threads(before)
