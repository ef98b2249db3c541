"""What a network is made of, as `shoal inspect` shows it: figures, tables and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.display import counted
from shoal.importance import Scores
from shoal.measure import (
    Benchmark,
    SiteStage,
    count_macs,
    count_params,
    depth,
    rectifier_stages,
)
from shoal.network import Block, Network, Opaque, Site
from shoal.network.about import described
from shoal.network.inputs import tensors_of
from shoal.report.about import about_lines
from shoal.report.table import Cell, Column, Row, Table, amount, text_columns
from shoal.surgery.drop import BlockCost, block_costs


@dataclass(frozen=True)
class Inspection:
    """The parts and the figures of a network, named `model` by the user."""

    model: str
    input_shape: tuple[int, ...]  # of one sample
    sizes: tuple[str, ...]  # that the inputs may have, a line for each input and condition
    sites: tuple[Site, ...]
    blocks: tuple[Block, ...]
    costs: Mapping[str, BlockCost]  # of dropping each removable block
    opaque: tuple[Opaque, ...]
    notes: tuple[str, ...]
    depth: int
    macs: int  # of one sample, without what is `uncounted`
    params: int
    uncounted: tuple[str, ...]
    stages: tuple[SiteStage, ...]  # of the sites, with their rectifier evaluations
    scores: Scores | None = None  # of the sites that have their rectifier, or of the blocks
    benchmark: Benchmark | None = None
    about: Mapping[str, Any] = field(default_factory=dict)  # what goes with it: `Network.meta`

    @property
    def evaluations(self) -> dict[str, int]:
        """The rectifier evaluations of one sample, by site, of those that have their rectifier."""
        return {name: n for stage in self.stages for name, n in stage.evaluations.items()}

    @property
    def relus(self) -> int:
        """All rectifier evaluations of one sample."""
        return sum(self.evaluations.values())

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
        figures = ("model", "depth", "macs", "params", "relus", "uncounted", "notes",
                   "input_shape", "sizes")  # fmt: skip
        scores = ("criterion", "samples", "settled")
        return {
            **{name: getattr(self, name) for name in figures},
            "sites": [self._site(site) for site in self.sites],
            "stages": [self._stage(stage) for stage in self.stages],
            "blocks": [self._block(block) for block in self.blocks],
            "opaque": [asdict(operation) for operation in self.opaque],
            **{name: getattr(self.scores, name, None) for name in scores},
            "latency": None if self.benchmark is None else self.benchmark.latency.to_dict(),
            "about": dict(self.about),
        }

    def _site(self, site: Site) -> dict[str, Any]:
        values = {name: getattr(site, name) for name in ("name", "kind", "channels", "linearized")}
        values["evaluations"] = self.evaluations.get(site.name, 0)
        if self.scored == "site":
            values |= self._score(site.name) | {"on_percent": self.on_percent(site.name)}
        return values

    def _stage(self, stage: SiteStage) -> dict[str, Any]:
        return {"stage": stage.title, "sites": stage.sites, "evaluations": stage.total}

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
    """Collect what a network, which the user calls `model`, is made of.

    It runs once, to count its work. Without `costs`, those of its blocks leave out latency.
    """
    inputs = network.example(2)
    work = count_macs(network, inputs)
    first = tensors_of(inputs)[0]
    return Inspection(
        model=model,
        input_shape=tuple(first.shape[1:]),
        sizes=tuple(network.inputs.size_lines()),
        sites=tuple(network.sites),
        blocks=tuple(network.blocks),
        costs=block_costs(network, inputs, latency=False) if costs is None else costs,
        opaque=tuple(network.opaque),
        notes=tuple(network.notes),
        depth=depth(network),
        macs=work.total,
        params=count_params(network),
        uncounted=tuple(work.uncounted),
        stages=tuple(rectifier_stages(network, inputs)),
        scores=scores,
        benchmark=benchmark,
        about=described(network),
    )


def inspection_tables(found: Inspection) -> list[Table]:
    """Return the tables of a network's sites, stages, blocks, and what could not be raised."""
    blocks = [_blocks(found)] if found.blocks else []
    stages = [_stages(found)] if len(found.stages) > 1 else []
    return [_sites(found), *stages, *blocks, *([_opaque(found)] if found.opaque else [])]


def _sites(found: Inspection) -> Table:
    scores = found.scores if found.scored == "site" else None
    columns = [
        *text_columns("site", "kind"),
        Column("channels", priority=2),
        Column("evaluations", meaning="of the rectifier, for one sample", priority=3),
    ]
    if scores is not None:
        columns += [
            Column("ON", "%", meaning="how often a neuron is ON"),
            Column(scores.title, "score"),
            *([Column("± standard error", "error", priority=1)] if estimated(scores) else []),
        ]
    rows = []
    for site in found.sites:
        kind = site.kind if site.linearized is None else f"{site.kind}, now {site.linearized}"
        count = found.evaluations.get(site.name, 0)
        channels = "?" if site.channels is None else site.channels
        cells: list[Cell] = [site.name, kind, channels, f"{count:,}"]
        if scores is not None:
            cells += [found.on_percent(site.name), scores.by_name.get(site.name)]
            cells += [scores.standard_errors.get(site.name)] if estimated(scores) else []
        rows.append(Row(tuple(cells)))
    return Table("rectifier sites", tuple(columns), tuple(rows))


def _stages(found: Inspection) -> Table:
    rows = tuple(
        Row((stage.title, len(stage.sites), f"{stage.total:,}", 100 * stage.total / found.relus
             if found.relus else None))
        for stage in found.stages
    )  # fmt: skip
    columns = (
        Column("stage", align="left", meaning="the sites whose input has these positions"),
        Column("sites"),
        Column("evaluations", meaning="of rectifiers, for one sample"),
        Column("share", "%"),
    )
    return Table("rectifier evaluations by stage", columns, rows)


def _blocks(found: Inspection) -> Table:
    timed = any(cost.latency_ms is not None for cost in found.costs.values())
    scores = found.scores if found.scored == "block" else None
    columns = (
        *text_columns("block", "removable"),
        Column("MACs", "%", meaning="share of the network's MACs that dropping it saves"),
        Column("parameters", "%", meaning="share of its parameters", priority=1),
        *([Column("latency", "ms", meaning="that dropping it saves")] if timed else []),
        *([] if scores is None else [Column(scores.title, "score")]),
        Column("layers", align="left", priority=2),
    )

    def cells(block: Block) -> tuple[Cell, ...]:
        cost = found.costs.get(block.name)
        saved: list[Cell] = [None] * 3
        if cost is not None:
            saved = [cost.macs_percent, cost.params_percent, cost.latency_ms]
        return (
            block.name,
            "yes" if block.removable else f"no: {block.reason}",
            *saved[: 3 if timed else 2],
            *([] if scores is None else [scores.by_name.get(block.name)]),
            ", ".join(layer.removeprefix(f"{block.name}.") for layer in block.layers),
        )

    title = "residual blocks, and what dropping each saves"
    return Table(title, columns, tuple(Row(cells(block)) for block in found.blocks))


def _opaque(found: Inspection) -> Table:
    return Table(
        "opaque operations: left as they are, and no removal crosses them",
        text_columns("in", "operation", "reason"),
        tuple(Row((o.path or "(the model itself)", o.op, o.reason)) for o in found.opaque),
    )


def inspection_lines(found: Inspection) -> list[str]:
    """Return what to say under the tables: the figures of the whole."""
    shape = "×".join(map(str, found.input_shape))
    lines = [
        f"{found.model}, input {shape}",
        *found.sizes,
        f"depth {found.depth} layers, {amount(found.macs)} MACs per sample, "
        f"{amount(found.params)} parameters",
        f"{len(found.evaluations)} rectifier sites, {found.relus:,} evaluations per sample "
        f"at {shape}",
    ]
    if found.uncounted:
        lines.append(f"not counted in the MACs: {', '.join(found.uncounted)}")
    if found.scores is not None:
        lines.append(f"scored on {scored_on(found.scores, 'training samples')}")
    if found.benchmark is not None:
        latency = found.benchmark.latency
        lines.append(
            f"latency at batch {latency.batch_size} on {latency.device}, "
            f"{counted(latency.threads, 'thread')}: {latency}; median (quartiles) of "
            f"{latency.samples} rounds, batch norms as they are"
        )
    notes = (f"note: {note}" for note in found.notes)
    return [*lines, *notes, *about_lines(found.about), gain_line(found)]


def scored_on(scores: Scores, samples: str) -> str:
    """Return of how many samples scores are, and whether it is certain which is the lowest."""
    if scores.standard_errors and not estimated(scores):
        return f"all {scores.samples} {samples}"
    settled = {
        None: "",
        True: "; it is certain which is the lowest",
        False: "; it is not certain which is the lowest: score more samples",
    }
    return f"{scores.samples} {samples}{settled[scores.settled]}"


def estimated(scores: Scores) -> bool:
    """Return whether scores have errors, being of a part of the data."""
    return any(scores.standard_errors.values())


def gain_line(found: Inspection) -> str:
    """Return what could go, and how much of the work and of the latency that is."""
    left = sum(site.linearized is None for site in found.sites)
    blocks = [block for block in found.blocks if block.name in found.costs]
    parts = [f"{left} of {len(found.sites)} rectifiers"] if left else []
    if blocks:
        branches = [set(block.branch) for block in blocks]
        outer = [  # what lies in another block goes with it
            found.costs[block.name]
            for block, branch in zip(blocks, branches, strict=True)
            if not any(branch < other for other in branches)
        ]
        text = f"{len(blocks)} of {len(found.blocks)} blocks, with "
        parts.insert(0, f"{text}{sum(cost.macs_percent for cost in outer):.0f} % of the MACs")
        parts[0] += _saving(found, outer)
    return f"could go: {'; '.join(parts)}" if parts else "no rectifier or block is left to go"


def _saving(found: Inspection, blocks: Sequence[BlockCost]) -> str:
    shares = [cost.latency_percent for cost in blocks if cost.latency_percent is not None]
    if not shares:
        return ""
    busy = found.benchmark is not None and not found.benchmark.latency.trusted
    doubt = "; not to be trusted" if busy or sum(shares) > 100 else ""
    return f" and {max(0.0, sum(shares)):.0f} % of the latency (the sum of each by itself{doubt})"
