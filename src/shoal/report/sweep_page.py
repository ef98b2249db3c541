"""A sweep as one HTML page that needs nothing beside it, of the same kind as a run's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shoal.display import counted
from shoal.files import write_file
from shoal.report.group_tables import groups_table, open_table
from shoal.report.html import html_table
from shoal.report.page import CHARACTERS, rendered
from shoal.report.sweep_chart import group_chart
from shoal.report.sweep_tables import cell_title, cells_table, count_words
from shoal.report.table import UNITS, Quantity, unit_of
from shoal.report.terminal import fitting
from shoal.search.figures import TOP1
from shoal.sweep import CellState, SweepFolder
from shoal.sweep.groups import Group, Spread, groups_of
from shoal.user_paths import user_path

_TEMPLATE = Path(__file__).with_name("sweep_page.html")
_GLOSSARY = (
    ("cell", "One run of the sweep: a method on a network and a data set, with a seed."),
    ("dense", "The network before the search."),
    ("dense / this, ×", "Latency of dense over this one's, both merged: above 1 is faster."),
    ("MACs", "Multiply-accumulates for one sample; in the table, dense over this."),
    ("±", "The standard deviation over the seeds."),
    ("published", "What the paper reports for as many removed, after its own training."),
    ("twin", "The result's layers trained from scratch, for as many epochs as the run."),
    ("validation, test", "All choices follow from validation data. Test data are only reported."),
)  # fmt: skip


def write_sweep_page(folder: SweepFolder, path: Path | None = None) -> Path:
    """Write a sweep's figures as one HTML page, and return its path.

    Args:
        folder: the sweep's.
        path: the file; None for `report.html` in the sweep's folder.

    Raises:
        RunError: the folder is not a sweep's, or is damaged.
        ShoalError: jinja2 is not installed.
        FileError: the file cannot be written.
    """
    cells, groups = folder.read(), groups_of(folder)
    parts: dict[str, list[Group]] = {}
    for one in groups:
        parts.setdefault(f"{one.model} on {one.data}", []).append(one)
    missing = open_table(groups)
    failed = sum(cell.state == "failed" for cell in cells)
    target = folder.path / "report.html" if path is None else user_path(path)
    text = rendered(
        _TEMPLATE,
        name=folder.path.resolve().name,
        finished=all(cell.state == "done" for cell in cells),
        lede=_lede(cells, groups, list(parts)),
        warning=f"{failed} of {counted(len(cells), 'run')} failed: see below" if failed else "",
        kinds=[_kind(title, part) for title, part in parts.items()],
        table=html_table(fitting(groups_table(groups, "by method"), CHARACTERS)),
        missing="" if missing is None else html_table(missing),
        cells=html_table(
            fitting(cells_table([_brief(cell) for cell in cells], "runs"), CHARACTERS)
        ),
        pages=_pages(folder, cells, target),
        glossary=_GLOSSARY,
    )
    write_file(target, text)
    return target


def _lede(cells: Sequence[CellState], groups: Sequence[Group], kinds: Sequence[str]) -> str:
    methods = len({(one.method, one.variant) for one in groups})
    where = kinds[0] if len(kinds) == 1 else f"{len(kinds)} networks and data sets"
    done = all(cell.state == "done" for cell in cells)
    runs = counted(len(cells), "run")
    state = f"{runs}, all done" if done else f"of {runs}, {count_words(cells)}"
    return f"{where}, {counted(methods, 'method')}: {state}."


def _kind(title: str, groups: Sequence[Group]) -> dict[str, Any]:
    """Return what the page says of the groups of one model and data."""
    return {"title": title, "figures": _figures(groups), "chart": group_chart(groups)}


def _figures(groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Return what a reader looks for first: title, figure, and whose it is."""
    done = [one for one in groups if one.quality is not None]
    if not done:
        return []
    unit = unit_of(done[0].quality_unit)
    named = "accuracy" if done[0].quality_name == TOP1 else done[0].quality_name
    found = [_top(f"best {named}", unit, [(one, one.quality) for one in done])]
    for title, name in (("fastest", "speedup"), ("least work", "macs_ratio")):
        calm = [one for one in done if one.trusted or name != "speedup"]
        known = [(one, one.figures.get(name)) for one in calm]
        if any(spread is not None for _, spread in known):
            found.append(_top(title, "×", known, speed=name == "speedup"))
    known = [(one, one.figures.get("seconds")) for one in done]
    most = max(known, key=lambda pair: pair[1].mean if pair[1] else 0.0)
    if most[1] is not None:
        found.append(("longest search", UNITS["s"](most[1].mean), most[0].title))
    return found


def _top(
    title: str, unit: str, known: Sequence[tuple[Group, Spread | None]], *, speed: bool = False
) -> tuple[str, str, str]:
    pairs = [(one, spread) for one, spread in known if spread is not None]
    one, spread = max(pairs, key=lambda pair: pair[1].mean)
    sure = one.certain or not speed
    return title, str(Quantity(spread.mean, unit, spread=spread.deviation, sure=sure)), one.title


def _brief(cell: CellState) -> CellState:
    """Return a cell without its reason, which has a table of its own."""
    return replace(cell, failed="see above" if cell.failed else "")


def _pages(folder: SweepFolder, cells: Sequence[CellState], target: Path) -> list[tuple[str, str]]:
    """Return the pages of the runs by title, as the sweep's page finds them."""
    found = []
    for cell in cells:
        page = folder.run(cell.name) / "report.html"
        if page.exists():
            near = target.resolve().parent == folder.path.resolve()
            link = page.relative_to(folder.path).as_posix() if near else page.resolve().as_posix()
            found.append((cell_title(cell), quote(link)))
    return found
