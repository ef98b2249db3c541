"""Peak memory of a call."""

from __future__ import annotations

import sys

import pytest
import torch

from shoal.errors import ConfigError
from shoal.measure import peak_memory_bytes

MIB = 2**20


def touches(mebibytes: int):
    return lambda: bytearray(b"\1") * (mebibytes * MIB)  # not PyTorch's: no allocator keeps it


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's memory figures")
def test_more_memory_is_seen_as_more() -> None:
    assert peak_memory_bytes(touches(96)) == pytest.approx(96 * MIB, rel=0.2)
    assert peak_memory_bytes(touches(0)) < 32 * MIB


def test_sampling_sees_a_peak_that_lasts() -> None:
    memory = sys.modules["shoal.measure.memory"]
    if memory._status_bytes("VmRSS") is None:
        pytest.skip("needs Linux's memory figures")

    def call() -> None:
        held = touches(96)()
        for _ in range(20):  # touch it again, so that the watcher gets its turns
            held.count(b"\2")

    assert memory._sampled_peak(call, 0.001) == pytest.approx(96 * MIB, rel=0.2)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot measure memory on device 'meta'"):
        peak_memory_bytes(int, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counts_what_is_allocated() -> None:
    found = peak_memory_bytes(lambda: torch.ones(MIB, device="cuda").sum(), device="cuda")
    assert found == pytest.approx(4 * MIB, rel=0.01)
