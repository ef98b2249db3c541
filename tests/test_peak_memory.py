"""Peak memory of a call, as the benchmarks measure it."""

from __future__ import annotations

import sys
import time
from types import ModuleType

import pytest

from scripts import script

MIB = 2**20

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs Linux's memory figures"
)


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    return script("benchmarks/peak_memory.py")


def touches(mebibytes: int):
    return lambda: bytearray(b"\1") * (mebibytes * MIB)  # not PyTorch's: no allocator keeps it


@pytest.mark.long
def test_more_memory_is_seen_as_more(memory: ModuleType) -> None:
    assert memory.peak_memory_bytes(touches(96)) == pytest.approx(96 * MIB, rel=0.2)
    assert memory.peak_memory_bytes(touches(0)) < 32 * MIB


def test_sampling_sees_a_peak_that_lasts(memory: ModuleType) -> None:
    def call() -> None:
        held = touches(96)()
        for _ in range(20):
            time.sleep(0.01)  # the watcher's turn
        assert held

    assert memory.sampled_peak(call, 0.001) == pytest.approx(96 * MIB, rel=0.2)
