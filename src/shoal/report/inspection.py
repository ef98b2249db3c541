"""What a network is made of, as `shoal inspect` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    def scored(self) -> str:
        """What the scores are of: "site" or "block"; empty without scores."""
        if self.scores is None:
            return ""
        blocks = {block.name for block in self.blocks} - {site.name for site in self.sites}
        return "site" if blocks.isdisjoint(self.scores) else "block"

    def on_percent(self, site: str) -> float | None:
        """Return how often a site's neurons are ON, in percent of all counts."""
        details = {} if self.scores is None else self.scores.details.get(site, {})
        return 100.0 * float(details["on"]) if details.get("on") is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        figures = ("model", "depth", "macs", "params", "uncounted", "notes", "input_shape")
        scores = ("criterion", "samples", "settled")
        return {
            **{name: getattr(self, name) for name in figures},
            "sites": [self._site(site) for site in self.sites],
            "blocks": [self._block(block) for block in self.blocks],
            "opaque": [asdict(operation) for operation in self.opaque],
            **{name: getattr(self.scores, name, None) for name in scores},
            "latency": None if self.benchmark is None else self.benchmark.latency.to_dict(),
        }

    def _site(self, site: Site) -> dict[str, Any]:
        values = {name: getattr(site, name) for name in ("name", "kind", "channels", "linearized")}
        if self.scored != "site":
            return values
        return values | self._score(site.name) | {"on_percent": self.on_percent(site.name)}

    def _block(self, block: Block) -> dict[str, Any]:
        names = ("name", "removable", "reason", "layers", "sites")
        values = {name: getattr(block, name) for name in names}
        cost = self.costs.get(block.name)
        values["cost"] = None if cost is None else cost.to_dict()
        return values | self._score(block.name) if self.scored == "block" else values

    def _score(self, name: str) -> dict[str, Any]:
        scores, errors = (getattr(self.scores, of) for of in ("by_name", "standard_errors"))
        return {"score": scores.get(name), "standard_error": errors.get(name)}


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
        scores: of its sites or blocks, if there are data.
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
