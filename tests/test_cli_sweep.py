"""`shoal sweep`: its exit codes, and its flags that may stand alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import shoal.sweep.place as place
import shoal.sweep.run as loop
from shoal.cli import main
from shoal.cli.params import as_options
from shoal.cli.sweep import with_bare_flags
from sweep_checks import Copies, spec_file


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Return what runs `shoal sweep` on the small spec, with what becomes of its cells."""
    monkeypatch.setattr(loop, "_PAUSE", 0.0)
    monkeypatch.chdir(tmp_path)

    def run(
        *words: str, fate: Mapping[str, list[str]] | None = None, **changes: Any
    ) -> tuple[int, str, str]:
        monkeypatch.setattr(place, "Processes", lambda jobs: Copies(fate))
        spec_file(tmp_path, method="easier", **changes)
        code = main(["sweep", "sweep.yaml", *words])
        return code, *capsys.readouterr()

    return run


def test_all_done_is_0_and_a_failed_cell_is_3(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run(fate={"easier-build-digits-seed1": ["the disk is full"]})
    assert code == 3
    assert "failed: the disk is full" in out
    assert "2 cells: 1 done, 1 failed" in out
    assert "shoal compare sweep" in out
    assert "easier-build-digits-seed1: failed: the disk is full" in err
    code, out, _ = run("--json")
    assert code == 0
    assert [cell["state"] for cell in json.loads(out)["cells"]] == ["done", "done"]


def test_options_are_named_as_they_stand_in_the_file(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(seed=[0, 0])
    assert (code, err) == (2, "shoal: cells 1 and 2 (seed: 0) are the same run: keep one of them\n")
    (tmp_path / "lacking.yaml").write_text("model: shoal:digits_resnet\n")
    assert main(["sweep", "lacking.yaml"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("shoal: no data are given: add data: D")
    assert "--data" not in err


def test_a_line_names_flags_of_the_command_and_other_options_as_a_file_does() -> None:
    line = "jobs=2 and epochs=3: add download=True, --data D, or --tries 2; see `f(epochs=1)`"
    assert as_options(line, {"--jobs", "--tries"}) == (
        "--jobs 2 and epochs: 3: add download: true, data: D, or --tries 2; see `f(epochs=1)`"
    )


def test_flags_of_other_commands_are_not_named(run: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run(seed=-1)
    assert code == 2
    assert "--seed" not in err
    assert "seed is -1" in err


def test_a_wrong_file_is_one_line_and_makes_no_folder(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = run(epoch=2)
    assert (code, out) == (2, "")
    assert err.startswith("shoal: unknown option 'epoch': did you mean 'epochs'")
    assert err.count("\n") == 1
    assert "in the cell" not in err  # it is wrong in all of them
    assert not (tmp_path / "sweep").exists()


def test_an_interrupted_sweep_says_how_to_go_on(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Copies) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Copies, "ended", interrupt)
    code, _, err = run()
    assert code == 130
    assert "the same command resumes" in err


@pytest.mark.parametrize("file", ["missing.yaml", "list.yaml"])
def test_a_file_that_holds_no_spec_is_one_line(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.yaml").write_text(yaml.safe_dump([1, 2]))
    assert main(["sweep", str(tmp_path / file)]) == 2
    err = capsys.readouterr().err
    assert file in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("sweep a.yaml --ray", "sweep a.yaml --ray=local"),
        ("sweep --ray a.yaml", "sweep --ray=local a.yaml"),
        (
            "sweep a.yaml --ray 10.0.0.1:6379 --tries 2",
            "sweep a.yaml --ray 10.0.0.1:6379 --tries 2",
        ),
        ("sweep a.yaml --slurm --jobs 4", "sweep a.yaml --slurm= --jobs 4"),
        ("sweep a.yaml --slurm partition=gpu", "sweep a.yaml --slurm partition=gpu"),
    ],
)
def test_ray_and_slurm_may_stand_alone(words: str, told: str) -> None:
    assert with_bare_flags(words.split()) == told.split()
