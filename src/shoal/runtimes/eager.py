"""Eager mode: PyTorch runs a network layer by layer, in eval and inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from typing_extensions import override

from shoal.network.inputs import Inputs, as_call, borrowed, map_tensors, tensors_of
from shoal.runtimes.runtime import EAGER, Runner, Runtime, register_runtime


@register_runtime(EAGER)
class Eager(Runtime):
    """PyTorch, without a compiler. Modules are left exactly as they were."""

    name = EAGER
    title = "PyTorch"

    @property
    @override
    def version(self) -> str:
        return torch.__version__

    @override
    def place(self, networks: Iterable[Any], inputs: Inputs) -> torch.device:
        if self.device is not None:
            return super().place(networks, inputs)
        return self.home(networks, inputs)

    @override
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> Runner:
        return EagerRunner(network, self.place([network], inputs), self)


class EagerRunner(Runner):
    """A network that PyTorch runs, on loan while it runs."""

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
        with self.lent_for(*as_call(inputs)) as call:
            yield call

    @contextmanager
    def lent_for(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[Callable[[], Any]]:
        """Give, for a while, a call of the network with copies of these arguments."""
        last = self.channels_last and any(t.dim() == 4 for t in tensors_of((args, kwargs)))

        def copy(tensor: torch.Tensor) -> torch.Tensor:  # no network can change another's
            images = last and tensor.dim() == 4
            layout = torch.channels_last if images else torch.preserve_format
            return tensor.detach().to(self.place, copy=True, memory_format=layout)

        with (
            _thread_count(self.threads),
            borrowed(self.network, device=self.place, channels_last=last) as lent,
        ):
            args, kwargs = map_tensors(copy, (args, kwargs))
            with torch.inference_mode():
                run = self.prepared(lent, args, kwargs)
                yield lambda: run(*args, **kwargs)

    def prepared(
        self, lent: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[..., Any]:
        """Return what is called with these arguments, of the network as it is lent."""
        return lent


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
