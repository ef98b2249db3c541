"""Table 3 as it can be measured: the networks of a run really merged, beside dense, everywhere.

And its latencies as they are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shoal.errors import summary
from shoal.measure import InRuntime, SideBySide, Timing, count_macs, depth
from shoal.merge.loading import load
from shoal.merge.merge import merge_
from shoal.network import Network
from shoal.network.inputs import Inputs, batch_size
from shoal.published import Cell
from shoal.runtimes.runtime import installed
from shoal.search.ending import folded
from shoal.search.run_files import read_run


@dataclass(frozen=True)
class Merged:
    """The networks of a run, merged.

    Attributes:
        folder: the run's.
        sizes: of each network, the dense one first.
        latency: of all, by what is removed, in each installed runtime: `SideBySide.to_dict`.
    """

    folder: str
    sizes: tuple[Size, ...]
    latency: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "folder": self.folder,
            "sizes": [asdict(size) for size in self.sizes],
            "latency": [dict(one) for one in self.latency],
        }


@dataclass(frozen=True)
class Size:
    """What one merged network is made of.

    Attributes:
        removed: rectifiers that are gone.
        depth: layers with weights on the longest path, merged.
        macs: multiply-accumulates of one sample, merged.
        macs_before: before it was merged.
        max_rel_error: what merging changed in its outputs, relative.
    """

    removed: int
    depth: int
    macs: int
    macs_before: int
    max_rel_error: float


def measure_merged(
    folder: str | Path,
    *,
    seconds: float = 2.0,
    say: Callable[[str], object] = lambda text: None,
) -> Merged:
    """Merge the network of every step of a run, and time all beside dense in every runtime.

    Whatever is linear in a row and can be merged exactly is merged, faster or not, as the paper
    means it; dense has its batch norms folded. Each merge is verified. Of a runtime that fails the
    `missing` says why.

    Args:
        folder: a run's.
        seconds: least time of measuring in each runtime.
        say: told what is going on.

    Raises:
        RunError: the folder is not a run's, or is damaged.
        ShoalError: one line on whatever else is wrong.
    """
    steps = {step.removed: step for step in read_run(folder).steps}
    networks: dict[str, Network] = {}
    sizes = []
    for removed, step in sorted(steps.items()):
        say(f"merging the network without {removed} rectifiers" if removed else "folding dense")
        network = load(folder, step=step.step).eval()
        inputs = network.example(1)
        before, error = count_macs(network, inputs).total, 0.0
        if removed:
            error = merge_(network, policy="always").max_rel_error
        else:
            network = folded(network)
        after = count_macs(network, inputs).total
        sizes.append(Size(removed, depth(network), after, before, error))
        networks[str(removed)] = network
    found = []
    inputs = networks["0"].example(1)
    limits = Timing(min_seconds=seconds, max_seconds=max(60.0, 2 * seconds))
    for name in installed():
        say(f"timing {len(networks)} networks in {name}")
        found.append(_timed(name, networks, inputs, limits).to_dict())
    return Merged(str(folder), tuple(sizes), tuple(found))


def _timed(
    runtime: str, networks: Mapping[str, Network], inputs: Inputs, limits: Timing
) -> SideBySide:
    try:
        return InRuntime(runtime, networks, inputs).measure(inputs, "0", **limits)
    except Exception as error:  # of a library, whatever it is: the other runtimes still count
        why = dict.fromkeys(networks, summary(error))
        return SideBySide(runtime, "0", {}, why, batch_size(inputs))


@dataclass(frozen=True)
class PrintedLatency:
    """A latency as it is printed.

    Attributes:
        device: where it was timed.
        removed: rectifiers that are gone.
        latency_ms: of one inference, milliseconds.
        ratio: latency of dense on the same device over this one; None where that is not printed.
    """

    device: str
    removed: int
    latency_ms: float
    ratio: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def printed_latencies(cells: Iterable[Cell]) -> list[PrintedLatency]:
    """Return the latencies among published cells of one network, in their order.

    Example:
        >>> from shoal import published
        >>> one = printed_latencies(published.table("table3"))[6]
        >>> one.device, one.removed, one.latency_ms, round(one.ratio, 2)
        ('Xeon E5-2640', 1, 9.33, 1.45)
    """
    told = [(cell.device, cell.removed or 0, cell.latency_ms) for cell in cells]
    times = [(device, removed, ms) for device, removed, ms in told if ms is not None]
    dense = {device: ms for device, removed, ms in times if not removed}
    return [
        PrintedLatency(device, removed, ms, dense[device] / ms if device in dense else None)
        for device, removed, ms in times
    ]
