"""Whether images are read as fast as a network trains on them, and how busy the CPUs are.

For numbers of decoding processes it prints images per second of the loader alone, and of training
with what share of each step is spent waiting for the next batch:

    python benchmarks/loading.py pacs:ROOT --model torchvision:resnet18 --workers 0,1,2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import torch
import torch.nn.functional as F

from shoal.data import load_data
from shoal.models import build_model, complete_spec, parse_spec


class Speed(NamedTuple):
    """What one pass over some batches took."""

    images: int
    seconds: float
    waiting: float  # seconds spent waiting for batches
    busy: float  # CPUs kept busy on average, by this process and its workers

    def line(self) -> str:
        """Return the figures as text."""
        rate, share = self.images / self.seconds, 100 * self.waiting / self.seconds
        return f"{rate:8.1f} images/s  {share:5.1f} % waiting  {self.busy:4.2f} CPUs busy"


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its workers, those that ended included."""
    own = psutil.Process()
    times = own.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in own.children(recursive=True):
        try:
            of_child = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += of_child.user + of_child.system
    return float(total)


def measure(
    loader: Any,
    step: Callable[[Any], object],
    batches: int,
    clock: Callable[[], float] = time.perf_counter,
    used: Callable[[], float] = cpu_seconds,
) -> Speed:
    """Return the speed of `step` on the first batches after one that starts everything up."""
    given: Iterator[Any] = iter(loader)
    step(next(given))
    images, waiting = 0, 0.0
    began, used_before = clock(), used()
    for _ in range(batches):
        asked = clock()
        batch = next(given, None)
        waiting += clock() - asked
        if batch is None:
            break
        images += len(batch[0])
        step(batch)
    seconds = clock() - began
    return Speed(images, seconds, waiting, (used() - used_before) / seconds)


def training_step(model: torch.nn.Module) -> Callable[[Any], object]:
    """Return a function that trains on a batch by plain SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(batch: Any) -> None:
        images, labels = batch
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if images.is_cuda:
            torch.cuda.synchronize()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="such as pacs:ROOT")
    parser.add_argument("--model", default="torchvision:resnet18")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--batches", type=int, default=20, help="timed in each of the rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", default="0,1,2", help="numbers of decoding processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    for workers in map(int, given.workers.split(",")):
        data = load_data(
            given.data,
            device=given.device,
            batch_size=given.batch_size,
            image_size=given.image_size,
            workers=workers,
            val_samples=1,
        )
        spec = complete_spec(parse_spec(given.model), num_classes=data.num_classes, in_channels=3)
        model = build_model(spec).to(given.device, memory_format=torch.channels_last).train()
        for what, step in (("loading", lambda batch: None), ("training", training_step(model))):
            rounds = [measure(data.train, step, given.batches) for _ in range(given.rounds)]
            rate = statistics.median(speed.images / speed.seconds for speed in rounds)
            middle = min(rounds, key=lambda speed: abs(speed.images / speed.seconds - rate))
            print(f"{workers} workers, {what:8}: {middle.line()}", flush=True)


if __name__ == "__main__":
    main()
