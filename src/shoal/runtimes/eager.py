"""Eager mode: PyTorch runs a network layer by layer, in eval and inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from shoal.network.inputs import Inputs, as_call, borrowed, home_device, map_tensors, tensors_of
from shoal.runtimes.runtime import EAGER, Runner, Runtime, register_runtime


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
        return _EagerRunner(network, self.place([network], inputs), self)


class _EagerRunner(Runner):
    def __init__(self, network: Any, place: torch.device, asked: Eager) -> None:
        self.network = network
        self.place = place
        self.device = str(place)
        self.threads = torch.get_num_threads() if asked.threads is None else asked.threads
        self.queue = None if place.type in ("cpu", "meta") else place
        self.channels_last = asked.channels_last

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with borrowed(self.network, device=self.place) as lent, torch.inference_mode():
            return lent(*args, **kwargs)

    @override
    @contextmanager
    def ready(self, inputs: Inputs) -> Iterator[Callable[[], object]]:
        last = self.channels_last and any(t.dim() == 4 for t in tensors_of(inputs))

        def copy(tensor: torch.Tensor) -> torch.Tensor:  # no network can change another's
            images = last and tensor.dim() == 4
            layout = torch.channels_last if images else torch.preserve_format
            return tensor.detach().to(self.place, copy=True, memory_format=layout)

        with (
            _thread_count(self.threads),
            borrowed(self.network, device=self.place, channels_last=last) as lent,
        ):
            args, kwargs = as_call(map_tensors(copy, inputs))
            with torch.inference_mode():
                yield lambda: lent(*args, **kwargs)


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
