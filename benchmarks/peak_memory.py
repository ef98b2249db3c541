"""How much more memory a call needs at its peak, by the figures that Linux gives of a process."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

__all__ = ["peak_memory_bytes", "sampled_peak", "status_bytes"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory_bytes(call: Callable[[], object], *, interval: float = 0.001) -> int:
    """Run `call` once and return by how many bytes resident memory rose at its peak.

    Memory that the process had freed and kept is used again without a rise: call in a fresh
    process for a figure to quote, and take the median of a few. Memory that other threads take
    meanwhile counts.

    Args:
        call: what to run; it takes no argument.
        interval: seconds between samples where the kernel's peak counter cannot be reset.
    """
    gc.collect()
    if not _reset_peak():
        return sampled_peak(call, interval)
    before = status_bytes("VmRSS")
    call()
    return max(0, status_bytes("VmHWM") - before)


def status_bytes(key: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024  # the file says kB, meaning 1024 bytes
    raise LookupError(f"{_STATUS} has no {key}")


def _reset_peak() -> bool:
    """Set the kernel's peak of resident memory (VmHWM) to the present; say whether it did."""
    try:
        _CLEAR_REFS.write_text("5")
        # Some sandboxes take the write and ignore it. Counters are kept per core: allow some slack.
        return status_bytes("VmHWM") - status_bytes("VmRSS") < 4 * 2**20
    except (OSError, LookupError):
        return False


def sampled_peak(call: Callable[[], object], interval: float) -> int:
    """Like `peak_memory_bytes`, but misses peaks shorter than `interval` seconds."""
    before = peak = status_bytes("VmRSS")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(interval):
            peak = max(peak, status_bytes("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return max(0, max(peak, status_bytes("VmRSS")) - before)
