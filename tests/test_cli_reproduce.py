from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

import shoal.sweep.place as place
import shoal.sweep.run as loop
from data.image_trees import write_image
from shoal import published
from shoal.cli import main
from shoal.cli.sweep import FAILED
from shoal.errors import ShoalError
from shoal.search.run_files import read_run
from shoal.sweep import CellState, Sweep, SweepFolder, cells_of
from small_runs import run
from sweep_checks import Copies, finished

DOMAINS = ("cartoon", "art_painting", "photo", "sketch")
CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["reproduce", *words]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_without_data_it_says_which_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "table1", "--list", "--model", "swin_t"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("no data") >= 28 + 7
    assert "no data for vlcs: the folder 'data/vlcs' does not exist: get VLCS.tar.gz" in shown
    assert "then give --data vlcs:data/vlcs" in shown
    line = refused(capsys, "table7")
    assert line == "shoal: no data are given for table7: get pacs as said above"


def test_table_3_without_data_is_shown_with_where_to_get_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["reproduce", "table3"]) == 2
    shown = capsys.readouterr()
    assert "no data for cifar10: " in shown.out
    assert "cifar-10-python.tar.gz" in " ".join(shown.out.split())
    line = "shoal: no data are given for table3: get cifar10 as said above"
    assert shown.err.splitlines()[-1] == line


def test_a_cell_that_failed_before_its_first_step_leaves_the_others_their_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[Path]] = []

    def one_fails(spec: dict[str, object], out: Path, *_: object, **__: object) -> Sweep:
        folder, (good, bad) = SweepFolder(out), cells_of(spec)
        shutil.copytree(finished(), folder.run(good.name))
        (folder.run(bad.name) / "steps").mkdir(parents=True)
        fates = ((good, "done", ""), (bad, "failed", "no memory"))
        states = tuple(
            CellState(one.name, one.given, one.job.to_dict(), state, failed=why)
            for one, state, why in fates
        )
        folder.write(states)
        return Sweep(out, states)

    def draw(runs: list[Path], path: Path) -> Path:
        drawn.append(runs)
        return path

    monkeypatch.setattr("shoal.sweep.sweep", one_fails)
    monkeypatch.setattr("shoal.extras.figures.removed", draw)
    words = ["--data", "cifar10=digits", "--model", "resnet18_cifar", "--seed", "0", "--seed", "1"]
    assert main(["reproduce", "figure3a", *words]) == FAILED
    shown = capsys.readouterr().out
    assert "no memory" in shown
    assert "the figure is in" in shown
    ((run,),) = drawn
    assert (run / "result.json").exists()


def test_cells_are_listed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "table7", "--data", "pacs:.", "--model", "swin_t", "--list", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == "table7"
    assert len(found["rows"]) == 12
    assert {row["state"] for row in found["rows"]} == {"waiting"}
    assert found["rows"][1]["cell"]["accuracy"] == 95.9
    assert found["missing"] == {}


def test_options_that_are_not_the_papers_are_said_and_by_which_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.yaml").write_text("how: line\nbudget: 0.5\n")
    words = ["reproduce", "table5", "--list", "--model", "swin_t", "--data", "cifar10=digits"]
    words += ["--config", "own.yaml", "--faithful", "--checkpoint", "swin_t=swin.pth"]
    assert main(words) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "every run had: how=line (--config)" in lines
    faithful = "criterion=entropy?zeros=on&pooling=batch"
    assert f"every run by easier had: {faithful} (--faithful)" in lines
    assert "every run of swin_t had: checkpoint=swin.pth (--checkpoint)" in lines
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == {
        "config": {"how": "line", "budget": 0.5},
        "faithful": True,
        "checkpoint": {"swin_t": "swin.pth"},
    }
    assert main(words[:7]) == 0
    assert "every run" not in capsys.readouterr().out


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("seed: 3\n")
    for words, expected in (
        (("tabel1",), "did you mean 'table1"),
        (("table4",), "unknown table or figure 'table4'"),
        (("table7", "--data", "dtd:x"), "table7 has no runs on 'dtd'"),
        (("table7", "--budget", "2"), "--budget is 2"),
        (("table7", "--checkpoint", "swin.pth"), "write NAME=FILE"),
        (("table7", "--config", "none.yaml"), "'none.yaml'"),
        (("table7", "--config", "options.yaml"), "seed is given among the options"),
        ((), "TARGET"),
    ):
        assert expected in refused(capsys, *words)


def small_sweep(spec: dict[str, object], out: Path, *_: object, **__: object) -> Sweep:
    """Put a small run in the place of every cell's."""
    folder, cells = SweepFolder(out), cells_of(spec)
    for cell in cells:
        run(folder.run(cell.name), remove=2)
    states = tuple(CellState(one.name, one.given, one.job.to_dict(), "done") for one in cells)
    folder.write(states)
    return Sweep(out, states)


@pytest.mark.long
def test_table_3_is_measured_on_merged_networks_and_figures_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.setattr("shoal.sweep.sweep", small_sweep)
    monkeypatch.setattr("shoal.reproduce.merged.installed", lambda: ["eager"])
    words = ["--data", "cifar10=digits", "--model", "resnet18_cifar"]
    assert main(["reproduce", "table3", *words]) == 0
    shown = capsys.readouterr().out
    assert "measured on digits in the place of cifar10" in shown
    assert "2 removed, merged" in shown
    assert "725.47" in shown
    assert "cannot come from merging" in " ".join(shown.split())
    assert main(["reproduce", "figure3a", *words]) == 0
    assert "the figure is in" in capsys.readouterr().out
    assert (tmp_path / "figure3a" / "figure3a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_cell_is_run_measured_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    for domain in DOMAINS:
        for kind in CLASSES:
            for number in range(3):
                write_image(tmp_path / "PACS" / domain / kind / f"{number}.jpg", (40, 40))
    options = "image_size: 32\nremove: 1\nruntime: eager\nepochs: 1\ndense_epochs: 1\n"
    (tmp_path / "small.yaml").write_text(options)
    words = ["reproduce", "table7", "--data", "pacs:.", "--model", "resnet18_cifar"]
    words += ["--config", "small.yaml", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert [row["state"] for row in found] == ["done"] * 2 + ["not reached"] * 15
    (run,) = (tmp_path / "table7" / "cells").iterdir()
    before = (run / "result.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (run / "result.json").stat().st_mtime_ns == before
    assert json.loads(capsys.readouterr().out)["rows"] == found


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> Copies:
    """Cells are done by copying a finished run; those on VLCS fail."""
    pool = Copies({"easier-resnet18_cifar-vlcs": ["no memory"]})
    monkeypatch.setattr(place, "Processes", lambda jobs: pool)
    monkeypatch.setattr(loop, "_PAUSE", 0.0)
    return pool


def test_compare_knows_the_cells_of_all_calls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], copied: Copies
) -> None:
    words = ["reproduce", "table1", "--model", "resnet18_cifar", "--method", "easier"]
    for name in ("pacs", "vlcs"):
        (tmp_path / name).mkdir()
    assert main([*words, "--data", "pacs:pacs"]) == 0
    assert main([*words, "--data", "cifar10=digits"]) == 0
    assert main([*words, "--data", "vlcs:vlcs"]) == FAILED
    first = SweepFolder(tmp_path / "table1").read()
    assert [state.state for state in first] == ["done", "done", "failed"]
    assert main([*words, "--data", "pacs:pacs", "--seed", "0", "--seed", "1"]) == 0
    again = SweepFolder(tmp_path / "table1").read()  # what two calls have is there once
    assert {state.name for state in first} < {state.name for state in again}
    assert len(again) == 4
    capsys.readouterr()
    assert main(["compare", "table1", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert {one["data"]: len(one["names"]) for one in groups} == {
        "digits": 1, "vlcs:vlcs": 0, "pacs:pacs": 2,
    }  # fmt: skip


def test_a_figure_is_refused_before_its_runs_where_nothing_can_draw_it(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    copied: Copies,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    words = ["figure3a", "--data", "cifar10=digits", "--model", "resnet18_cifar"]
    assert "pip install 'shoal[report]'" in refused(capsys, *words)
    assert copied.works == []
    assert not (tmp_path / "figure3a").exists()
    assert main(["reproduce", *words, "--list"]) == 0  # what draws nothing needs nothing


@pytest.mark.parametrize(
    ("target", "fails"),
    [("figure3a", "shoal.extras.figures.removed"), ("table3", "shoal.reproduce.measure_merged")],
)
def test_what_was_measured_is_shown_though_the_figure_or_the_merge_fails(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    copied: Copies,
    target: str,
    fails: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ShoalError("the disk is full")

    monkeypatch.setattr(fails, fail)
    words = ["reproduce", target, "--data", "cifar10=digits", "--model", "resnet18_cifar"]
    assert main(words) == 2
    shown = capsys.readouterr()
    (run,) = copied.works
    dense = read_run(run.folder).steps[0].metrics.top1_test
    assert f"{dense:.2f} %" in shown.out
    assert "measured on digits in the place of cifar10" in shown.out
    assert shown.err.splitlines()[-1] == "shoal: the disk is full"
    assert main([*words, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["accuracy"] == dense
    assert len(found["printed_latencies"]) == (54 if target == "table3" else 0)


def test_printed_latencies_stand_beside_what_is_measured_within_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["reproduce", "table3", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (place,) = (number for number, line in enumerate(lines) if "Jetson Orin" in line)
    for line, figures in (
        (lines[place], "8.52 8.31 7.83 7.38 6.91 6.44 6.13 6.06 6.14"),
        (lines[place + 1], "1.00 1.03 1.09 1.15 1.23 1.32 1.39 1.41 1.39"),
    ):
        assert " ".join(line.split()).endswith(f" {figures}")
    assert all(len(line.rstrip()) <= 80 for line in lines)


def test_the_budget_of_a_file_is_the_one_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "options.yaml").write_text("budget: 0.1\n")
    words = ["reproduce", "table7", "--data", "pacs:.", "--config", "options.yaml", "--list"]
    assert main(words) == 0
    assert "budget 0.1: each training has this share" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"] == 0.1


def test_without_torchvision_the_list_says_that_it_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["reproduce", "lottery", "--list"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("no data") >= len(published.table("lottery"))
    assert "pip install 'shoal[torchvision]'" in shown


def test_cells_run_wherever_those_of_a_sweep_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []

    def noted(spec: object, out: Path, **more: object) -> Sweep:
        asked.append({name: value for name, value in more.items() if name != "listener"})
        return Sweep(Path("out"), ())

    monkeypatch.setattr("shoal.sweep.sweep", noted)
    (tmp_path / "same.yaml").write_text("model: shoal:digits_resnet\n")
    usual = {"jobs": None, "threads": None, "tries": 3, "ray": None, "slurm": None}
    usual |= {"gpus_per_cell": None}
    slurm = {"partition": "gpu", "timeout_min": 60}
    for words, told in (
        ("--jobs 4 --threads 2 --tries 5", {"jobs": 4, "threads": 2, "tries": 5}),
        ("--ray --gpus-per-cell 0.25", {"ray": "local", "gpus_per_cell": 0.25}),
        ("--ray 10.0.0.1:6379", {"ray": "10.0.0.1:6379"}),
        ("--slurm partition=gpu&timeout_min=60", {"slurm": slurm}),
        ("--slurm", {"slurm": {}}),
        ("", {}),
    ):
        given = ["table2", "--data", "cifar10=digits", *words.split()]
        assert main(["reproduce", *given]) == 0
        assert main(["sweep", "same.yaml", *words.split()]) == 0
        assert asked[-2:] == [usual | told] * 2
    assert main(["reproduce", "--ray", "table2", "--data", "cifar10=digits"]) == 0
    assert asked[-1] == usual | {"ray": "local"}
    assert "key=value" in refused(capsys, "table2", "--data", "cifar10=digits", "--slurm", "gpu")
