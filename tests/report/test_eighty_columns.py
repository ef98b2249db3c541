"""On a terminal of 80 columns nothing is cut, and only long names break, at their dots."""

from __future__ import annotations

import importlib
import io
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from test_energy_tables import ENERGY
from test_group_tables import GROUPS
from test_int8_tables import FOUR as INT8_FOUR
from test_int8_tables import run as int8_run
from test_robustness_tables import DENSE as ROBUST
from test_robustness_tables import RESULT as ROBUST_RESULT
from test_run_tables import BUSY, DOUBTFUL, LATENCY, record, runtime, step
from test_sweep_progress import CELLS

import shoal
import shoal.report
import small_runs
from shoal import published
from shoal.display import broken, folded_text, print_lines, to_type
from shoal.measure import benchmark
from shoal.options import published_recipes, recipes
from shoal.report import (
    Compared,
    Comparison,
    comparison_lines,
    comparison_tables,
    energy_table,
    front_table,
    inspect_network,
    inspection_lines,
    inspection_tables,
    latency_table,
    merge_tables,
    outcome_lines,
    outcome_tables,
    robustness_table,
    runtimes_table,
    slower_lines,
    steps_table,
    twin_table,
)
from shoal.report.group_tables import groups_table, open_table
from shoal.report.latency_tables import benchmark_table
from shoal.report.recipe_tables import published_table, recipe_table, recipes_table
from shoal.report.reproduce_tables import merged_tables, reproduced_table
from shoal.report.sweep_tables import cells_table
from shoal.report.table import Table
from shoal.report.terminal import print_table
from shoal.reproduce import Merged, find_target
from shoal.reproduce.merged import Size
from shoal.reproduce.outcome import Row

WIDTH = 80
LONG = (
    "features.denseblock3.denselayer17.norm1..features.denseblock3.denselayer17.conv2",
    "layer2.1.collapsed..layer2.2.collapsed",
    "encoder.layers.encoder_layer_11.self_attention_norm_and_projection",
)
BREAKS = re.compile(r"\s+|(?<=[.,:/&?=_+-])")


def printed(table: Table) -> list[str]:
    file = io.StringIO()
    print_table(Console(file=file, width=WIDTH), table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def assert_fits(table: Table) -> None:
    lines = printed(table)
    shown = "\n".join(lines)
    wide = [line for line in lines if len(line) > WIDTH and not line.startswith("  shoal ")]
    assert not wide, shown
    heads = [column.name for column in table.columns]
    said = [table.title, *table.notes, *heads, *(text for row in table.texts() for text in row)]
    whole = {part for text in said for part in BREAKS.split(text)}
    whole |= {part for part in BREAKS.split("left out for lack of room: ; --verbose shows all")}
    whole |= {f"{word}{mark}" for head in heads for word in head.split() for mark in ",;"}
    for part in (part for line in lines for part in BREAKS.split(line)):
        assert part in whole or set(part) <= {"─", ","}, f"{part!r} is cut:\n{shown}"


def whole_run() -> Iterator[Table]:
    slow = {"dense_folded": 1234.5, "result_merged": 1123.4}
    places = [(name, size) for name in ("eager", "onnxruntime", "openvino") for size in (1, 256)]
    entries = [runtime(name, size, **slow) for name, size in places]
    entries[1] |= {"ratio": dict.fromkeys(slow, DOUBTFUL)}
    latency = replace(LATENCY, runtimes=tuple(entries), speedup=DOUBTFUL, batch=256)
    steps = (
        step(0),
        *(step(n, names=LONG[: n + 1], operation="collapse+linearize", latency_doubt=BUSY,
               latency_ratio=1.0 + n, within=n < 2) for n in (1, 2)),
        step(3, names=(LONG[0],), ended="it ended", begun_from=1),
    )  # fmt: skip
    for found in (
        record(*steps, latency=latency, energy=ENERGY, folder=Path("/a/long/path" * 9)),
        record(*steps, latency=None, stopped=""),
    ):
        yield steps_table(found)
        yield front_table(found)
        yield from outcome_tables(found)
    twin = twin_table(record(*steps, latency=latency), record(step(0), latency=latency))
    assert twin is not None
    yield twin
    table = runtimes_table(latency)
    assert table is not None
    yield table
    yield energy_table(ENERGY)
    yield from outcome_tables(
        int8_run("onnxruntime", "openvino", batches=(1, 256), **dict.fromkeys(INT8_FOUR, 1234.5))
    )


def networks() -> Iterator[Table]:
    net = small_runs.captured().copy()
    args, kwargs = net.example_inputs(1)
    costs = shoal.block_costs(net, kwargs or args, min_seconds=0.0, repeats=2)
    found = inspect_network(net, "a model", costs=costs)
    sites = tuple(replace(site, name=name) for site, name in zip(net.sites, LONG, strict=False))
    blocks = tuple(replace(block, name=LONG[0], reason=" ".join(LONG)) for block in found.blocks)
    unknown = (replace(block, removable=False) for block in blocks)
    yield from inspection_tables(found)
    yield from inspection_tables(replace(found, sites=sites, blocks=(*blocks, *unknown)))
    scored = shoal.score(net, small_runs.digits().train, samples=50)
    yield from inspection_tables(replace(found, scores=scored))
    yield from merge_tables(shoal.merge_(net.copy(), policy="always"))
    inputs = torch.zeros(2, 1, 8, 8)
    alone, both = (benchmark(net, inputs, of, repeats=3, min_seconds=0) for of in (None, net))
    assert both.speedup is not None
    doubted = replace(both, latency=replace(both.latency, disturbed=BUSY))
    for figures in (alone, both, doubted):
        yield benchmark_table(figures, "dense")


def side_by_side() -> Iterator[Table]:
    names = {"dense_folded": "torchvision:resnet18?num_classes=1000&weights=IMAGENET1K_V1",
             "result_merged": "/home/somebody/experiments/2026/run, merged"}  # fmt: skip
    table = latency_table([runtime("onnxruntime", 256, **dict.fromkeys(names, 1234.5))], names)
    assert table is not None
    yield table
    figures = [Compared(name, 90.0, 88.0, 113, 118, 10**9, 10**7) for name in names.values()]
    yield from comparison_tables(Comparison(figures, [], "", []))
    yield recipes_table(recipes)
    yield recipe_table("vit", recipes["vit"])
    yield published_table([*published_recipes().values()])
    yield robustness_table({"dense": ROBUST, "result": ROBUST_RESULT})


def sweeps() -> Iterator[Table]:
    yield cells_table(CELLS)
    named = [replace(cell, name=f"{LONG[0]}-0a1b2c3d") for cell in CELLS]
    yield cells_table(named)
    others = [replace(one, model=LONG[0], data="/home/somebody/photos.py:make") for one in GROUPS]
    for groups in (GROUPS, [*GROUPS, *others]):
        yield groups_table(groups)
        missing = open_table(groups)
        assert missing is not None
        yield missing


def reproduced() -> Iterator[Table]:
    for name in ("table1", "lottery"):
        cells = published.table(name)
        rows = [
            Row(one.model, one.data, one.method, "how=identity&zeros=on", one, "digits",
                removed=one.removed, accuracies=(90.0, 91.0), changes=(-1.0, 0.5), macs_cut=30.0,
                training_speedup=1.5, state="not reached")
            for one in cells
        ]  # fmt: skip
        yield reproduced_table(find_target(name), rows)
    sizes = tuple(Size(n, 20 - n, 10**11, 10**11, 1e-7) for n in range(3))
    yield from merged_tables(Merged("run", sizes, ()), published.table("table3"))


TABLES = {
    "a run": whole_run,
    "networks": networks,
    "side by side": side_by_side,
    "sweeps": sweeps,
    "reproduced": reproduced,
}


@pytest.mark.long
@pytest.mark.parametrize("kind", TABLES)
def test_every_table_fits_and_no_word_is_cut(kind: str) -> None:
    for table in TABLES[kind]():
        assert_fits(table)


def test_no_table_is_forgotten_here() -> None:
    """Each function of the room that makes tables is called above."""
    makers = set()
    for module in pkgutil.iter_modules(shoal.report.__path__):
        found = vars(importlib.import_module(f"shoal.report.{module.name}"))
        makers |= {name for name in found if re.fullmatch(r"[a-z][a-z0-9_]*_tables?", name)}
    makers -= {"html_table", "print_table"}  # these show them
    source = Path(__file__).read_text(encoding="utf-8")
    called = {name for name in makers if f"{name}(" in source}
    inner = {"comparison_table", "int8_tables"}  # called by `outcome_tables`
    assert makers - called - inner == set()


def lines_of(monkeypatch: pytest.MonkeyPatch, *lines: str) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    file = io.StringIO()
    print_lines(Console(file=file, width=WIDTH), *lines)
    return file.getvalue().splitlines()


def test_lines_break_between_words_and_commands_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/a/long/path/of/somebody" * 4
    slow = {"median": 0.8, "low": 0.7, "high": 0.9}
    entry = runtime("onnxruntime", 256, dense_folded=1.0, result_merged=1.2)
    entry["ratio"] = dict.fromkeys(entry["latency"], slow)
    free = entry | {"runtime": "eager", "decides": True}
    latency = replace(LATENCY, runtimes=(entry, free))
    found = record(step(0), step(1, names=LONG), latency=latency, folder=Path(path))
    inspected = inspect_network(small_runs.captured(), "a model")
    side = Comparison([], [], "digits: 988 train, 539 val, 270 test images in 10 classes", [])
    lines = [
        *outcome_lines(found), *slower_lines(found), *inspection_lines(inspected),
        *comparison_lines(side), f"it is in '{path} of mine/best', and nowhere else in the world",
    ]  # fmt: skip
    shown = lines_of(monkeypatch, *lines)
    for line in shown:
        assert len(line) <= WIDTH or path in line, line
    assert "".join(" ".join(shown).split()) == "".join(" ".join(lines).split())
    assert f"  shoal export {path} --step 0" in shown
    monkeypatch.delenv("COLUMNS")
    file = io.StringIO()
    print_lines(Console(file=file, width=20), "a line for a file or a pipe is not broken")
    assert file.getvalue() == "a line for a file or a pipe is not broken\n"


def test_a_command_is_one_that_a_shell_takes() -> None:
    assert to_type("export", Path("a run"), "--step", 3) == "\n  shoal export 'a run' --step 3"


@given(st.text("ab.,_/- ", max_size=60), st.integers(2, 20))
@example("a_a _", 2)  # "a" and "_" are words of their own, though "a_" stands elsewhere
def test_folding_loses_nothing_and_keeps_to_the_width(text: str, width: int) -> None:
    lines = folded_text(text, width)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(len(line) <= width for line in lines)
    rest = " ".join(text.split())
    for line, following in pairwise(lines):
        assert rest.startswith(line)
        rest = rest.removeprefix(line)
        broken_inside = not rest.startswith(" ")
        rest = rest.lstrip()
        parts = re.split(r"(?<=[.,/_-])", f"{line}{following}")
        assert not broken_inside or line[-1] in ".,/_-" or max(map(len, parts)) > width


@pytest.mark.parametrize("width", range(20, 60))
def test_a_line_never_ends_between_a_number_and_its_unit(width: int) -> None:
    text = "step 5: validation 25.00 % (+1.39 points), 1.24 × as fast; 11.6 s, 3 min 20 s left"
    lines = broken(text, width)
    assert " ".join(" ".join(lines).split()) == text
    assert not any(re.match(r"\s*(%|points|×|s|min)(\W|$)", line) for line in lines)


@given(st.lists(st.text("ab", min_size=1, max_size=8), max_size=20), st.integers(10, 30))
def test_lines_are_broken_at_spaces_alone(words: list[str], width: int) -> None:
    lines = broken(" ".join(words), width)
    assert " ".join(lines).split() == words
    assert all(len(line) <= width for line in lines)
