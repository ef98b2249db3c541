"""What an entropy pass costs beside a plain inference pass: time and peak memory.

All passes run in eval mode over the same batches, interleaved round by round; a ratio is the median
of the rounds' own ratios. The network is ResNet-18 for 32x32 images on random ones.

    python benchmarks/entropy_pass.py --threads 2 --json benchmarks/results/entropy_pass.json
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peak_memory import peak_memory_bytes
from shoal.importance.entropy import Entropy
from shoal.measure import Ratio, clock_timer, time_rounds
from shoal.measure.ratio import quartiles
from shoal.models import resnet18_cifar
from shoal.modes import make_channels_last
from shoal.network import Network, capture
from shoal.passes.batches import observe
from shoal.search.moves import POSITIONS
from shoal.surgery import LineMoments

BASELINE = "captured network, plain"


class PublishedEntropy:
    """The published procedure, written from its description.

    Forward hooks keep the input of each rectifier module. After each batch (z >= 0) masks of them
    give each neuron's entropy in that batch; the entropies are averaged over the batches.
    """

    def __init__(self, network: Network) -> None:
        self.kept: dict[str, Tensor] = {}
        self.sums = {site.name: 0.0 for site in network.sites}
        self.handles = [
            network.get_submodule(name).register_forward_hook(self._keeper(name))
            for name in self.sums
        ]

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.kept[name] = inputs[0].detach().clone()

        return keep

    def end_batch(self) -> None:
        """Add the entropies of the batch that went through."""
        for name, z in self.kept.items():
            on = (z >= 0).float().mean(dim=(0, 2, 3))
            off = 1 - on
            bits = -(torch.xlogy(on, on) + torch.xlogy(off, off)) / torch.log(torch.tensor(2.0))
            self.sums[name] += float(bits.mean())

    def remove(self) -> None:
        """Take the hooks off the network."""
        for handle in self.handles:
            handle.remove()


def make_passes(batches: int, batch_size: int) -> dict[str, Callable[[], object]]:
    """Return the passes to compare, by name."""
    torch.manual_seed(0)
    model = resnet18_cifar().eval()
    make_channels_last(model)
    data = [
        torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        for _ in range(batches)
    ]
    network = capture(model, data[0][:2])

    def plain(module: nn.Module) -> None:
        with torch.no_grad():
            for batch in data:
                module(batch)

    def entropy() -> None:
        criterion = Entropy()
        observe(network, data, [criterion])
        criterion.scores()

    def entropy_and_lines() -> None:
        criterion, moments = Entropy(), LineMoments(positions=POSITIONS)
        observe(network, data, [criterion, moments])
        criterion.scores()
        moments.lines()

    def published() -> None:
        criterion = PublishedEntropy(network)
        with torch.no_grad():
            for batch in data:
                network(batch)
                criterion.end_batch()
        criterion.remove()

    return {
        BASELINE: lambda: plain(network),
        "original model, plain": lambda: plain(model),
        "entropy": entropy,
        "entropy and lines": entropy_and_lines,
        "published procedure": published,
    }


def measure_times(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return each pass's time per batch and its ratios to the plain passes."""
    passes = make_passes(options.batches, options.batch_size)
    rounds = time_rounds(
        passes,
        warmup=1,
        repeats=options.rounds,
        min_seconds=0.0,
        max_seconds=options.max_seconds,
        timer=clock_timer(),
    )
    found = {}
    for name, seconds in rounds.seconds.items():
        per_batch = [1e3 * s / options.batches for s in seconds]
        found[name] = {
            "ms_per_batch": dict(zip(("q1", "median", "q3"), quartiles(per_batch), strict=True)),
            "ratio": Ratio.of(seconds, rounds.seconds[BASELINE]).to_dict(),
            "ratio_to_original": Ratio.of(
                seconds, rounds.seconds["original model, plain"]
            ).to_dict(),
        }
    return found


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Return by how many MiB each pass raises memory at its peak: the median of fresh processes."""
    names = [BASELINE, "entropy", "entropy and lines", "published procedure"]
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.memory_runs):
        for name in names:
            words = [sys.executable, __file__, "--peak", name]
            words += ["--threads", str(options.threads), "--batch-size", str(options.batch_size)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found[name].append(float(done.stdout))
    return {name: statistics.median(values) for name, values in found.items()}


def print_peak(options: argparse.Namespace) -> None:
    """Print by how many MiB one pass raises this process's memory at its peak."""
    passes = make_passes(2, options.batch_size)
    print(peak_memory_bytes(passes[options.peak]) / 2**20)


def processor() -> str:
    """Return the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(times: dict[str, dict[str, Any]], memory: dict[str, float]) -> None:
    head = f"{'pass':26}{'ms per batch':>26}{'× captured':>24}{'× original':>12}"
    print(head + (f"{'peak MiB':>10}{'extra':>9}" if memory else ""))
    for name, row in times.items():
        ms, ratio = row["ms_per_batch"], row["ratio"]
        line = f"{name:26}" + f"{ms['median']:.1f} ({ms['q1']:.1f} to {ms['q3']:.1f})".rjust(26)
        line += f"{ratio['median']:.3f} ({ratio['q1']:.3f} to {ratio['q3']:.3f})".rjust(24)
        line += f"{row['ratio_to_original']['median']:.3f}".rjust(12)
        if name in memory:
            extra = 100 * (memory[name] / memory[BASELINE] - 1)
            line += f"{memory[name]:.1f}".rjust(10) + f"{extra:+.1f} %".rjust(9)
        print(line)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, default=4, help="batches of a pass")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--max-seconds", type=float, default=300.0, help="limit of the timing")
    parser.add_argument("--memory-runs", type=int, default=3, help="0 leaves memory out")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options)
        return
    memory = measure_memory(options) if options.memory_runs else {}
    times = measure_times(options)
    command = shlex.join(["python", "benchmarks/entropy_pass.py", *(arguments or sys.argv[1:])])
    device = f"{processor()}, {options.threads} threads, torch {torch.__version__}"
    print(f"ResNet-18, 32×32, batch {options.batch_size}, channels_last, float32")
    print(f"{device}\n{command}\n")
    print_table(times, memory)
    if options.json:
        figures = {
            "device": device,
            "command": command,
            "model": "shoal:resnet18_cifar",
            "batch_size": options.batch_size,
            "batches": options.batches,
            "baseline": BASELINE,
            "passes": times,
            "peak_rise_mib": memory,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
