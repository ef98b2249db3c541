"""The benchmark of loading: what it counts."""

from __future__ import annotations

import torch

from scripts import script

loading = script("benchmarks/loading.py")


def test_waiting_is_what_lies_between_asking_and_getting() -> None:
    now = [0.0]

    def batches():
        for _ in range(5):
            now[0] += 3.0  # seconds that a batch takes to come
            yield torch.zeros(4, 1), torch.zeros(4)

    def step(batch):
        now[0] += 1.0

    speed = loading.measure(batches(), step, 4, clock=lambda: now[0], used=lambda: 1.5 * now[0])
    assert speed == loading.Speed(images=16, seconds=16.0, waiting=12.0, busy=1.5)
    figures = [word for word in speed.line().split() if word[0].isdigit()]
    assert figures == ["1.0", "75.0", "1.50"]  # images/s, %, CPUs
