"""How much more memory a call needs at its peak."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from shoal.errors import ConfigError, ShoalError
from shoal.network.inputs import resolve_device

__all__ = ["peak_memory_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory_bytes(
    call: Callable[[], object],
    *,
    device: torch.device | str | None = None,
    interval: float = 0.001,
) -> int:
    """Run `call` once and return by how many bytes memory in use rose at its peak.

    On CUDA this is exact for what PyTorch allocates: the peak of allocated memory less what was
    allocated before. On the CPU it is the rise of the process's resident memory, so it has limits:

    - Memory that the process had freed and kept is used again without a rise. Call in a fresh
      process for a figure to quote, and take the largest of a few calls.
    - Memory that other threads take meanwhile counts.
    - Linux's own peak counter is used where it can be reset; elsewhere on Linux resident memory is
      sampled every `interval` seconds, which misses shorter peaks; on other systems only a rise
      above the highest peak the process ever had is seen.

    Args:
        call: what to run; it takes no argument.
        device: a CUDA device to watch; None or a CPU watches resident memory.
        interval: seconds between samples where sampling is needed.

    Raises:
        ConfigError: the device is neither the CPU nor an available CUDA device.
        ShoalError: this system tells no memory figures.
    """
    place = resolve_device(device if device is not None else "cpu")
    gc.collect()
    if place.type == "cuda":
        return _cuda_peak(call, place)
    if place.type != "cpu":
        raise ConfigError(f"cannot measure memory on device '{place}': use 'cpu' or a CUDA device")
    if _status_bytes("VmRSS") is None:
        return _ever_higher(call)
    if _reset_peak():
        return _counter_peak(call)
    return _sampled_peak(call, interval)


def _cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before)


def _status_bytes(key: str) -> int | None:
    """Return a figure of /proc/self/status in bytes, or None where there is none."""
    try:
        text = _STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024  # the file tells kB, meaning 1024 bytes
    return None


def _reset_peak() -> bool:
    """Set the kernel's peak of resident memory (VmHWM) to the present; say whether it did."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    peak, present = _status_bytes("VmHWM"), _status_bytes("VmRSS")
    # Some sandboxes take the write and ignore it. Counters are kept per core: allow some slack.
    return peak is not None and present is not None and peak - present < 4 * 2**20


def _counter_peak(call: Callable[[], object]) -> int:
    before = _status_bytes("VmRSS") or 0
    call()
    return max(0, (_status_bytes("VmHWM") or 0) - before)


def _sampled_peak(call: Callable[[], object], interval: float) -> int:
    before = peak = _status_bytes("VmRSS") or 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, _status_bytes("VmRSS") or 0)

    watcher = threading.Thread(target=watch, name="shoal-memory", daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(0, max(peak, _status_bytes("VmRSS") or 0) - before)


def _ever_higher(call: Callable[[], object]) -> int:
    try:
        import resource
    except ImportError:
        raise ShoalError(
            "memory cannot be measured on this system: use Linux, macOS or a CUDA device"
        ) from None
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, else in kB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
