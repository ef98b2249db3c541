"""What a layer costs on this machine: measured once, remembered on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path

import torch
from torch import fx, nn

from shoal.files import write_file
from shoal.measure import latency_in
from shoal.merge.conv_map import ConvMap
from shoal.merge.flattening import as_built
from shoal.merge.linear_ops import tensor_shape
from shoal.modes import device_of, dtype_of
from shoal.network import Network
from shoal.runtimes import EAGER, find_runtime

__all__ = ["LatencyCosts"]


def _cache_folder() -> Path:
    """Return where measured latencies are kept: $SHOAL_CACHE, or the user's cache folder."""
    chosen = os.environ.get("SHOAL_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shoal"


class LatencyCosts:
    """Latency of layers by configuration and input shape, in milliseconds.

    Layers are timed one after another, not side by side, and the figures are kept on disk for later
    runs on this machine: so the fastest round counts, which other work disturbs least.

    Args:
        network: whose device and number type the layers get.
        batch: batch size of the inputs.
        runtime: where to measure.
    """

    def __init__(self, network: Network, batch: int, runtime: str = EAGER) -> None:
        self.batch = batch
        self.device = device_of(network)
        self.dtype = dtype_of(network) or torch.float32
        self.runtime = find_runtime(runtime)
        self.path = _cache_folder() / f"latency-{self._machine()}.json"
        self._known: dict[str, float] = self._read()
        self._fresh = False

    def _machine(self) -> str:
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        parts = [
            "fastest", platform.machine(), platform.processor(), platform.node(), where,
            self.device.type, str(torch.get_num_threads()), torch.__version__,
            self.runtime.name, self.runtime.version,
        ]  # fmt: skip
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]

    def _read(self) -> dict[str, float]:
        try:
            return {str(k): float(v) for k, v in json.loads(self.path.read_text()).items()}
        except (OSError, ValueError, AttributeError):
            return {}  # a damaged cache is only a cache

    def save(self) -> None:
        """Write new figures to disk; a folder that cannot be written is no error."""
        if self._fresh:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_file(self.path, json.dumps({**self._read(), **self._known}))
                self._fresh = False

    def map_ms(self, found: ConvMap, node: fx.Node) -> float:
        """Return the latency of the layers that compute a map of a node's value."""
        shape = tensor_shape(node)
        place = "before" if found.covers(shape[2:]) else None  # of a flattening
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        layers = as_built(found, node, place).layers(like)
        if place is not None:
            shape = (shape[0], found.weight[0].numel())
        size = (self.batch, *(n if n is not None else self.batch for n in shape[1:]))
        key = f"{[repr(layer) for layer in layers]}|{size}|{self.dtype}"
        if key not in self._known:
            inputs = torch.randn(size, device=self.device).to(self.dtype)
            model = nn.Sequential(*layers) if len(layers) != 1 else layers[0]
            options = {"min_seconds": 0.05, "max_seconds": 5.0, "repeats": 7, "warmup": 2}
            timing = latency_in(self.runtime, {"layers": model}, inputs, **options)
            self._known[key] = min(timing["layers"].rounds_ms)
            self._fresh = True
        return self._known[key]
