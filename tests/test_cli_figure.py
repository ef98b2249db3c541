from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cli import main
from shoal.extras import figures
from shoal.importance import Scores
from shoal.network import Network

MODEL = "shoal:digits_resnet?width=4"
BLOCKS = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2"]


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command line that must be refused, and return its one line."""
    assert main(["figure", *map(str, words)]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines()[-1].startswith("shoal: ")
    return seen.err.splitlines()[-1]


@pytest.mark.usefixtures("matplotlib")
def test_l1_by_stage_is_written_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "l1.png"
    assert main(["figure", "l1-by-stage", MODEL, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert f"the figure is in '{out}'" in capsys.readouterr().out


def test_criteria_draws_what_each_criterion_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[dict[str, Scores], int]] = []

    def draw(network: Network, scores: dict[str, Scores], path: Path, *, remove: int) -> Path:
        assert [b.name for b in network.blocks if b.removable] == BLOCKS
        drawn.append((scores, remove))
        return path

    monkeypatch.setattr(figures, "criteria_map", draw)
    words = ["figure", "criteria", MODEL, "--data", "digits", "--samples", "40", "--remove", "2"]
    given = "last, block_influence,l1?scope=global,last,consensus?criteria=last+l1"
    assert main([*words, "--criteria", given, "--out", str(tmp_path / "map.svg")]) == 0
    ((scores, remove),) = drawn
    assert remove == 2
    assert list(scores) == [
        "last", "block_influence", "l1?scope=global", "consensus?criteria=last+l1",
    ]  # fmt: skip
    assert all(list(own) == BLOCKS for own in scores.values())
    assert scores["block_influence"].samples == 40
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "last: layer2.2, layer2.1"
    assert lines[2] == f"l1?scope=global: {', '.join(scores['l1?scope=global'].lowest(2))}"
    assert lines[4] == f"the figure is in '{tmp_path / 'map.svg'}'"


@pytest.mark.usefixtures("matplotlib")
def test_criteria_is_written(tmp_path: Path) -> None:
    out = tmp_path / "map.png"
    words = ["figure", "criteria", MODEL, "--data", "digits", "--samples", "20"]
    assert main([*words, "--criteria", "random,last", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "f.png"
    data = ("--data", "digits", "--out", out)
    for words, expected in (
        (("l1-by-stage", MODEL, "--out", tmp_path / "f.gif"), "must end in .png"),
        (("l1-by-stage", MODEL), "--out"),
        (("l1-by-stage", "shoal:cifar_resnet21", "--out", out), "did you mean"),
        (("l1-by-stage", MODEL, "--checkpoint", tmp_path / "w.pt", "--out", out), "w.pt"),
        (("criteria", MODEL, "--out", out), "--data"),
        (("criteria", MODEL, *data, "--criteria", "l1,ckaa"), "did you mean 'cka'"),
        (("criteria", MODEL, *data, "--criteria", "cka?place=site"), "scores sites"),
        (("criteria", MODEL, *data, "--criteria", ","), "give names with commas"),
        (("criteria", MODEL, *data, "--remove", "0"), "--remove"),
        (("criteria", MODEL, *data, "--mean", "grey"), "mean is 'grey'"),
        (("criterai", MODEL), "criterai"),
        (("front", tmp_path / "none", "--out", out), "there is no folder"),
        ((), "Missing command"),
    ):
        assert expected in refused(capsys, *words)
    assert not out.exists()


@pytest.mark.usefixtures("matplotlib")
def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "l1-by-stage", MODEL, "--out", "/proc/figures/l1.png")
    assert "cannot write '/proc/figures/l1.png'" in line


def test_the_help_names_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figure", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("l1-by-stage", "criteria", "removed", "front", "scores"):
        assert name in shown


def test_figures_of_runs_take_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    for name in ("removed", "front", "score_map"):

        def draw(runs: object, path: Path, *, _name: str = name, **options: object) -> Path:
            asked.append((_name, runs, options))
            return path

        monkeypatch.setattr(figures, name, draw)
    out = ["--out", str(tmp_path / "f.png")]
    assert main(["figure", "removed", "a", "b", "--no-published", *out]) == 0
    assert main(["figure", "front", "a", "--against", "macs", *out]) == 0
    assert main(["figure", "scores", "a", *out]) == 0
    assert asked == [
        ("removed", ["a", "b"], {"printed": False}),
        ("front", ["a"], {"against": "macs"}),
        ("score_map", "a", {}),
    ]
    assert "the figure is in" in capsys.readouterr().out
    assert "must end in .png" in refused(capsys, "front", "a", "--out", tmp_path / "f.gif")
