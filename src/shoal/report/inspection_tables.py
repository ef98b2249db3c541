"""A network's parts in tables."""

from __future__ import annotations

from shoal.network import Block, Site
from shoal.report.inspection import Inspection
from shoal.report.table import Cell, Column, Row, Table
from shoal.report.wording import amount

__all__ = ["inspection_lines", "inspection_tables"]


def inspection_tables(found: Inspection) -> list[Table]:
    """Return the tables of a network's sites, its blocks, and what could not be raised."""
    blocks = [_blocks(found)] if found.blocks else []
    return [_sites(found), *blocks, *([_opaque(found)] if found.opaque else [])]


def _sites(found: Inspection) -> Table:
    scores = found.scores if found.scored == "site" else None
    columns = [
        Column("site", align="left"),
        Column("kind", align="left"),
        Column("channels", priority=2),
    ]
    if scores is not None:
        columns += [
            Column("ON", "%", meaning="how often a neuron is ON"),
            Column(scores.title, "score"),
            Column("± standard error", "error", priority=1),
        ]

    def cells(site: Site) -> tuple[Cell, ...]:
        own = (site.name, _kind(site), "?" if site.channels is None else site.channels)
        if scores is None:
            return own
        score, error = scores.by_name.get(site.name), scores.standard_errors.get(site.name)
        return (*own, found.on_percent(site.name), score, error)

    return Table("rectifier sites", tuple(columns), tuple(Row(cells(s)) for s in found.sites))


def _kind(site: Site) -> str:
    return site.kind if site.linearized is None else f"{site.kind}, now {site.linearized}"


def _blocks(found: Inspection) -> Table:
    timed = any(cost.latency_ms is not None for cost in found.costs.values())
    scores = found.scores if found.scored == "block" else None
    columns = (
        Column("block", align="left"),
        Column("removable", align="left"),
        Column("MACs", "%", meaning="share of the network's MACs that dropping it saves"),
        Column("parameters", "%", meaning="share of its parameters", priority=1),
        *([Column("latency", "ms", meaning="that dropping it saves")] if timed else []),
        *([] if scores is None else [Column(scores.title, "score")]),
        Column("layers", align="left", priority=2),
    )

    def cells(block: Block) -> tuple[Cell, ...]:
        cost = found.costs.get(block.name)
        return (
            block.name,
            "yes" if block.removable else f"no: {block.reason}",
            None if cost is None else cost.macs_percent,
            None if cost is None else cost.params_percent,
            *([None if cost is None else cost.latency_ms] if timed else []),
            *([] if scores is None else [scores.by_name.get(block.name)]),
            ", ".join(layer.removeprefix(f"{block.name}.") for layer in block.layers),
        )

    title = "residual blocks, and what dropping each saves"
    return Table(title, columns, tuple(Row(cells(block)) for block in found.blocks))


def _opaque(found: Inspection) -> Table:
    return Table(
        "opaque operations: left as they are, and no removal crosses them",
        tuple(Column(name, align="left") for name in ("in", "operation", "reason")),
        tuple(Row((o.path or "(the model itself)", o.op, o.reason)) for o in found.opaque),
    )


def inspection_lines(found: Inspection) -> list[str]:
    """Return what to say under the tables: the figures of the whole."""
    shape = "×".join(map(str, found.input_shape))
    left = sum(site.linearized is None for site in found.sites)
    removable = sum(block.removable for block in found.blocks)
    lines = [
        f"{found.model}, input {shape}",
        f"{left} of {len(found.sites)} rectifiers, {removable} of {len(found.blocks)} blocks "
        "removable",
        f"depth {found.depth} layers, {amount(found.macs)} MACs per sample, "
        f"{amount(found.params)} parameters",
    ]
    if found.uncounted:
        lines.append(f"not counted in the MACs: {', '.join(found.uncounted)}")
    if found.scores is not None:
        certain: dict[bool | None, str] = {
            True: "; the lowest is certain",
            False: "; the lowest is not certain: score more samples",
        }
        settled = certain.get(found.scores.settled, "")
        lines.append(f"scored on {found.scores.samples} training samples{settled}")
    if found.benchmark is not None:
        latency = found.benchmark.latency
        lines.append(
            f"latency {latency} for a batch of {latency.batch_size} on {latency.device}, "
            f"threads: {latency.threads}; median (quartiles) of {latency.samples} rounds, batch "
            "norms as they are"
        )
    return [*lines, *(f"note: {note}" for note in found.notes)]
