"""A network's parts in tables for the terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from shoal.network import Site
from shoal.report.inspection import Inspection
from shoal.report.wording import amount

__all__ = ["inspection_tables"]


def inspection_tables(found: Inspection) -> list[RenderableType]:
    """Return what to print, from the parts to the figures of the whole."""
    parts: list[RenderableType] = [_sites(found)]
    if found.blocks:
        parts.append(_blocks(found))
    if found.opaque:
        parts.append(_opaque(found))
    return [*parts, *(escape(line) for line in _summary(found))]


def _sites(found: Inspection) -> Table:
    table = _table("rectifier sites")
    for head in ("site", "kind"):
        table.add_column(head)
    table.add_column("channels", justify="right")
    scores = found.scores if found.scores_sites else None
    if scores is not None:
        unit = ", bits" if scores.criterion == "entropy" else ""
        table.add_column("ON", justify="right")
        table.add_column(f"{scores.criterion}{unit}", justify="right")
        table.add_column("± standard error", justify="right")
    for site in found.sites:
        row = [site.name, _kind(site), "?" if site.channels is None else str(site.channels)]
        if scores is not None:
            share, score = found.on_percent(site.name), scores.by_name.get(site.name)
            error = scores.standard_errors.get(site.name)
            row.append("–" if share is None else f"{share:.1f} %")
            row.append("–" if score is None else f"{score:.4f}")
            row.append("–" if error is None else f"{error:.4f}")
        table.add_row(*map(escape, row))
    return table


def _kind(site: Site) -> str:
    return site.kind if site.linearized is None else f"{site.kind}, now {site.linearized}"


def _blocks(found: Inspection) -> Table:
    table = _table("residual blocks, and what dropping each saves")
    table.add_column("block")
    table.add_column("removable")
    timed = any(cost.latency_ms is not None for cost in found.costs.values())
    for head in ("MACs", "parameters", *(["latency"] if timed else [])):
        table.add_column(head, justify="right")
    scores = found.scores if found.scores_blocks else None
    if scores is not None:
        table.add_column(scores.criterion, justify="right")
    table.add_column("layers")
    for block in found.blocks:
        cost = found.costs.get(block.name)
        row = [block.name, "yes" if block.removable else f"no: {block.reason}"]
        row.append("–" if cost is None else f"{cost.macs_percent:.2f} %")
        row.append("–" if cost is None else f"{cost.params_percent:.2f} %")
        if timed:
            ms = None if cost is None else cost.latency_ms
            row.append("–" if ms is None else f"{ms:.2f} ms")
        if scores is not None:
            score = scores.by_name.get(block.name)
            row.append("–" if score is None else f"{score:.4g}")
        shared = f"{block.name}."
        row.append(", ".join(layer.removeprefix(shared) for layer in block.layers))
        table.add_row(*map(escape, row))
    return table


def _opaque(found: Inspection) -> Table:
    table = _table("opaque operations: left as they are, and no removal crosses them")
    for head in ("in", "operation", "reason"):
        table.add_column(head)
    for operation in found.opaque:
        row = (operation.path or "(the model itself)", operation.op, operation.reason)
        table.add_row(*map(escape, row))
    return table


def _summary(found: Inspection) -> list[str]:
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
        lines.append(f"scored on {found.scores.samples} training samples{_settled(found)}")
    if found.benchmark is not None:
        latency = found.benchmark.latency
        lines.append(
            f"latency {latency} for a batch of {latency.batch_size} on {latency.device}, "
            f"threads: {latency.threads}; median (quartiles) of {latency.samples} rounds, batch "
            "norms as they are"
        )
    return [*lines, *(f"note: {note}" for note in found.notes)]


def _settled(found: Inspection) -> str:
    settled = found.scores.settled if found.scores is not None else None
    if settled is None:
        return ""
    return "; the lowest is certain" if settled else "; the lowest is not certain: take more"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="dim")
