"""What a network is made of, as `shoal inspect` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal.importance import Scores
from shoal.measure import Benchmark, count_macs, count_params, depth
from shoal.network import Block, Network, Opaque, Site
from shoal.surgery.block_costs import BlockCost, block_costs

__all__ = ["Inspection", "inspect_network"]


@dataclass(frozen=True)
class Inspection:
    """The parts and the figures of a network.

    Attributes:
        model: what the user calls it.
        input_shape: of one sample.
        sites: all rectifier sites in the order of the forward pass.
        blocks: all residual blocks.
        costs: what dropping each removable block saves; with latencies if they were measured.
        opaque: operations that could not be raised to modules, with reasons.
        notes: what else the user should know.
        depth: layers with weights on the longest path.
        macs: multiply-accumulates of one sample.
        params: number of parameter elements.
        uncounted: operations that `macs` leaves out.
        scores: of the sites that still have their rectifier, or of the blocks; None without data.
        benchmark: the latency measured here; None if not asked for.
    """

    model: str
    input_shape: tuple[int, ...]
    sites: tuple[Site, ...]
    blocks: tuple[Block, ...]
    costs: Mapping[str, BlockCost]
    opaque: tuple[Opaque, ...]
    notes: tuple[str, ...]
    depth: int
    macs: int
    params: int
    uncounted: tuple[str, ...]
    scores: Scores | None = None
    benchmark: Benchmark | None = None

    @property
    def scores_sites(self) -> bool:
        """Whether there are scores, and of sites."""
        return self.scores is not None and not self.scores_blocks

    @property
    def scores_blocks(self) -> bool:
        """Whether there are scores, and of blocks."""
        names = {block.name for block in self.blocks} - {site.name for site in self.sites}
        return self.scores is not None and any(name in names for name in self.scores)

    def on_percent(self, site: str) -> float | None:
        """Return how often a site's neurons are ON, in percent of all counts."""
        share = self._detail(site).get("on")
        return None if share is None else 100.0 * float(share)

    def _detail(self, site: str) -> dict[str, Any]:
        return dict(self.scores.details.get(site, {})) if self.scores is not None else {}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        latency = self.benchmark.latency.to_dict() if self.benchmark is not None else None
        return {
            "model": self.model,
            "input_shape": list(self.input_shape),
            "depth": self.depth,
            "macs": self.macs,
            "params": self.params,
            "uncounted": list(self.uncounted),
            "sites": [self._site(site) for site in self.sites],
            "blocks": [self._block(block) for block in self.blocks],
            "opaque": [
                {"name": o.name, "path": o.path, "op": o.op, "reason": o.reason}
                for o in self.opaque
            ],
            "notes": list(self.notes),
            "criterion": self.scores.criterion if self.scores is not None else None,
            "samples": self.scores.samples if self.scores is not None else None,
            "settled": self.scores.settled if self.scores is not None else None,
            "latency": latency,
        }

    def _site(self, site: Site) -> dict[str, Any]:
        values = {
            "name": site.name,
            "kind": site.kind,
            "channels": site.channels,
            "linearized": site.linearized,
        }
        if not self.scores_sites:
            return values
        return values | {**self._score(site.name), "on_percent": self.on_percent(site.name)}

    def _block(self, block: Block) -> dict[str, Any]:
        cost = self.costs.get(block.name)
        values = {
            "name": block.name,
            "removable": block.removable,
            "reason": block.reason,
            "layers": list(block.layers),
            "sites": list(block.sites),
            "cost": None if cost is None else cost.to_dict(),
        }
        return values | self._score(block.name) if self.scores_blocks else values

    def _score(self, name: str) -> dict[str, Any]:
        assert self.scores is not None
        score = self.scores.by_name.get(name)
        return {"score": score, "standard_error": self.scores.standard_errors.get(name)}


def inspect_network(
    network: Network,
    model: str,
    *,
    scores: Scores | None = None,
    benchmark: Benchmark | None = None,
    costs: Mapping[str, BlockCost] | None = None,
) -> Inspection:
    """Collect what a network is made of; it runs once, to count its work.

    Args:
        network: the captured network; it is left as it is.
        model: what the user calls it.
        scores: of its sites or blocks, if data were there.
        benchmark: of its latency, if it was measured.
        costs: of its removable blocks, where their latencies were measured.
    """
    args, kwargs = network.example_inputs(2)
    inputs: Any = kwargs or args
    work = count_macs(network, inputs)
    first = args[0] if args else next(iter(kwargs.values()))
    return Inspection(
        model=model,
        input_shape=tuple(first.shape[1:]),
        sites=tuple(network.sites),
        blocks=tuple(network.blocks),
        costs=block_costs(network, inputs, latency=False) if costs is None else costs,
        opaque=tuple(network.opaque),
        notes=tuple(network.notes),
        depth=depth(network),
        macs=work.total,
        params=count_params(network),
        uncounted=tuple(work.uncounted),
        scores=scores,
        benchmark=benchmark,
    )
