"""The page of a run: everything in one file, and nothing in it but text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_run_tables import DENSE, LATENCY, record, step

from shoal.report import write_page
from shoal.report.sentence import sentence
from shoal.report.strip import strip
from shoal.search.layers import Layer


class Reader(HTMLParser):
    """Collects rows of tables, headings, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.heads: list[str] = []
        self.fetched: list[str] = []
        self._into: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        links = [value for name, value in attrs if name in ("src", "href") and value]
        self.fetched += [value for value in links if value.startswith("http")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._into = self.rows[-1]
        if tag == "h2":
            self.heads.append("")
            self._into = self.heads

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "h2"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into is not None:
            self._into[-1] += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_the_page_holds_what_the_terminal_shows(tmp_path: Path) -> None:
    shown = replace(record(step(0), step(1), total=5, removed=2), folder=tmp_path)
    path = write_page(shown)
    assert path == tmp_path / "report.html"
    found = read(path)
    assert {"result", "steps", "what to know", "accuracy against latency"} <= set(found.heads)
    assert ["rectifiers left", "5", "3", "2 removed"] in found.rows
    assert any(row[:2] == ["1", "linearized site1"] for row in found.rows)
    assert not found.fetched
    assert "<svg" in path.read_text()


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    odd = step(1, names=("<script>alert(1)</script>", "a[red]b"))
    path = write_page(replace(record(step(0), odd), folder=tmp_path), tmp_path / "p.html")
    assert "<script>" not in path.read_text()
    assert any("linearized <script>alert(1)</script>, a[red]b" in row for row in read(path).rows)


def test_a_run_that_goes_on_has_a_page_too(tmp_path: Path) -> None:
    going = replace(record(step(0), step(1), latency=None, stopped=""), folder=tmp_path)
    assert "not finished yet" in write_page(going).read_text()


def test_the_first_sentence_says_it_all(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "model: shoal:cifar_resnet32?x=1\ndata: folder:a/photos\n"
    )
    final = replace(DENSE, top1_val=89.8, top1_test=87.6)
    latency = replace(LATENCY, runtime="onnxruntime", batch=1)
    shown = replace(
        record(step(0), step(1, metrics=final)),
        folder=tmp_path,
        latency=latency,
        machine={"processor": "Some CPU", "date": "2026-11-28"},
    )
    told = "cifar_resnet32 on photos: 2.00 × as fast in ONNX Runtime at batch 1, 0.40 points less "
    told += "test accuracy (88.00 % → 87.60 %); measured on Some CPU, 2026-11-28."
    page = write_page(shown).read_text(encoding="utf-8")
    assert f'<p class="lede">{told}</p>' in page
    doubted = replace(latency, speedup={**latency.speedup, "trusted": False})
    assert "could not be told" in sentence(replace(shown, latency=doubted), {})
    same = replace(latency, speedup={"median": 1.0, "low": 0.9, "high": 1.1})
    assert "no certain change of speed" in sentence(replace(shown, latency=same), {})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("cifar10:/home/me/data", "cifar10"),
        ("pacs:/data?leave_out=photo", "pacs"),
        ("digits", "digits"),
        ("folder:/home/me/photos", "photos"),
        ("my.py:load?size=8", "load"),
    ],
)
def test_data_are_called_by_their_kind_and_a_folder_by_its_name(data: str, said: str) -> None:
    config = {"model": "shoal:digits_resnet", "data": data}
    assert sentence(record(step(0)), config).startswith(f"digits_resnet on {said}: ")


def test_layers_stand_below_those_whose_place_they_take(tmp_path: Path) -> None:
    fates = ("kept", "collapsed", "collapsed", "dropped", "merged", "merged")
    layers = tuple(Layer(f"l{i}", "conv 3×3", fate, 9) for i, fate in enumerate(fates))
    merged = (
        Layer("l0", "conv 3×3", "kept", 9),
        Layer("all.collapsed", "conv 3×3", "collapsed", 9),
        Layer("l5", "conv 3×3", "merged", 9),
    )
    before, after = strip(replace(record(step(0)), layers=layers, merged_layers=merged))
    edges = [[float(x) for x in re.findall(r' x="([\d.]+)"', drawn)] for drawn in (before, after)]
    assert len(edges[0]) == 6
    assert edges[1] == [edges[0][0], edges[0][1], edges[0][5]]
    assert "all.collapsed: conv 3×3, 9 MACs; collapsed" in after
    assert strip(record(step(0))) == ("", "")
