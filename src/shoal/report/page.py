"""A run as one HTML page that needs nothing beside it. It needs jinja2, and matplotlib to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shoal.display import three_digits
from shoal.errors import missing_extra
from shoal.files import write_file
from shoal.report.about import machine_words
from shoal.report.chart import curve
from shoal.report.front_table import front_table
from shoal.report.html import html_table
from shoal.report.latency_tables import quotient
from shoal.report.merge_tables import merge_tables
from shoal.report.run_tables import outcome_lines, outcome_tables, steps_table
from shoal.report.sentence import sentence
from shoal.report.slower import slower_lines
from shoal.report.strip import legend, strip
from shoal.report.table import UNITS, amount, points, quality_unit
from shoal.report.terminal import fitting
from shoal.search.figures import TOP1
from shoal.search.layers import RegionTime
from shoal.search.records import RunRecord
from shoal.search.run_files import read_config, readable_twin
from shoal.user_paths import user_path

_TEMPLATE = Path(__file__).with_name("page.html")
_HEAD = Path(__file__).with_name("page_head.html")
_FOOT = Path(__file__).with_name("page_foot.html")
_STYLE = Path(__file__).with_name("page.css")
CHARACTERS = 150  # that a table of figures has room for on a page of 1200 pixels
_GLOSSARY = (
    ("dense", "The network before the search."),
    ("rectifier, site", "An activation such as ReLU, off or on, at one place of the network."),
    ("linearized", "A rectifier that a line fitted to it, or the identity, has replaced."),
    ("dropped", "A residual block of which only the shortcut is left."),
    ("collapsed", "A stretch of layers that one layer, fitted to its output, has replaced."),
    ("merged", "Layers in a row without a rectifier between them, composed into one that computes "
     "the same."),
    ("MACs", "Multiply-accumulates for one sample; half of what is often printed as FLOPs."),
    ("depth", "Layers with weights on the longest path from input to output."),
    ("dense / this, ×", "Latency of dense, its batch norms folded, over this one's, from "
     "rounds that timed both: above 1 is faster. In brackets its 95 % interval."),
    ("points", "Percentage points, or points of the task's own quality."),
    ("validation, test", "All choices follow from validation data. Test data are only reported."),
)  # fmt: skip


def write_page(
    record: RunRecord,
    path: str | Path | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    twin: RunRecord | None = None,
) -> Path:
    """Write a run's figures as one HTML page, and return its path.

    Args:
        record: of the run, finished or not.
        path: the file; None for `report.html` in the run's folder.
        config: the run's options as they are shown; None reads them, and the twin, in its folder.
        twin: the record of its twin, where `config` is given.

    Raises:
        ShoalError: jinja2 is not installed.
        FileError: the file cannot be written.
    """
    folder = record.folder or Path()
    damage: list[str] = []
    if config is None:
        config = {} if record.folder is None else read_config(record.folder)
        twin, damage = readable_twin(record)
    allowed = config.get("max_drop")
    merge = [] if record.merge is None else merge_tables(record.merge)
    quality = record.dense.quality_name
    text = rendered(
        _TEMPLATE,
        name=folder.resolve().name,
        finished=record.finished,
        lede=sentence(record, config),
        slower=slower_lines(record),
        figures=_figures(record),
        about=_about(record, config),
        quality="accuracy" if quality == TOP1 else quality,
        curve=curve(record, allowed if isinstance(allowed, int | float) else None),
        strip=strip(record),
        legend=legend(record),
        tables=map(html_table, outcome_tables(record, twin)),
        regions=_regions(record.regions),
        lines=[*outcome_lines(record), *(f"note: {note}" for note in damage)],
        steps=html_table(fitting(steps_table(record), CHARACTERS)),
        front=html_table(front_table(record)),
        merge=[html_table(table) for table in merge],
        options=[(name, _shown(value)) for name, value in config.items() if value is not None],
        glossary=_GLOSSARY,
    )
    target = folder / "report.html" if path is None else user_path(path)
    write_file(target, text)
    return target


def rendered(template: Path, **values: Any) -> str:
    """Return a page of a `name` from the template of what stands below its head.

    Raises:
        ShoalError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise missing_extra("jinja2", "report", "a report as a page") from error
    environment = Environment(autoescape=True, trim_blocks=True)
    whole = "".join(part.read_text(encoding="utf-8") for part in (_HEAD, template, _FOOT))
    made = environment.from_string(whole)
    return made.render(style=_STYLE.read_text(encoding="utf-8"), **values)


def _figures(record: RunRecord) -> list[tuple[str, str, str]]:
    """Return what a reader looks for first: title, figure, and what it was before."""
    dense, final, end = record.dense, record.final, record.latency
    unit = UNITS[quality_unit(dense)]
    found = []
    if end is not None:
        gain, _, interval = str(quotient(end.speedup)).partition(" (")
        before, after = map(three_digits, (end.dense_folded_ms, end.result_merged_ms))
        place = f"batch {end.batch}, {before} → {after} ms"
        found.append(("speed", gain, f"({interval}; {place}" if interval else place))
    for part, key in (("validation", "top1_val"), ("test", "top1_test")):
        before, after = getattr(dense, key), getattr(final, key)
        if before is not None and after is not None:
            found.append((part, points(after - before), f"{unit(before)} → {unit(after)}"))
    depth, macs, params = (
        (final.depth, final.macs, final.params)
        if end is None
        else (end.merged_depth, end.merged_macs, end.merged_params)
    )
    found += [
        ("depth", f"{depth} layers", f"{dense.depth} before"),
        ("work", f"{amount(macs)} MACs", f"{amount(dense.macs)} before"),
        ("parameters", amount(params), f"{amount(dense.params)} before"),
    ]
    if dense.relus != final.relus and final.relus is not None and dense.relus is not None:
        found.append(("rectifiers", f"{amount(final.relus)} evaluations",
                      f"{amount(dense.relus)} before"))  # fmt: skip
    return found


def _about(record: RunRecord, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what was made shallower, of what data, how and where."""
    own = [(name, _shown(config[name])) for name in ("model", "data", "method") if config.get(name)]
    return [*own, ("measured on", machine_words(record.machine))] if record.machine else own


def _regions(found: Sequence[RegionTime]) -> list[dict[str, str]]:
    most = max((max(one.dense_ms, one.result_ms) for one in found), default=0.0)
    return [
        {
            "name": one.name or "(in the model's own forward pass)",
            "dense": UNITS["ms"](one.dense_ms) if one.dense_ms else "–",
            "result": UNITS["ms"](one.result_ms) if one.result_ms else "–",
            "dense_width": f"{100 * one.dense_ms / most:.1f}",
            "result_width": f"{100 * one.result_ms / most:.1f}",
        }
        for one in found
        if most
    ]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
