"""`shoal export`: a run's result, or a saved network, as one file that computes the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import shoal
import small_runs
from shoal.cli import main
from shoal.runtimes.onnx_runner import OnnxRunner

MODEL = f"{small_runs.__file__}:build"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with three of four rectifiers gone."""
    folder = tmp_path_factory.mktemp("export") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small_runs.untimed_commands(patch)
        small_runs.run(folder, remove=3, base=MODEL)
    return folder


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())


def test_a_run_is_exported_merged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert main(["export", str(run)]) == 0
    shown = capsys.readouterr().out
    assert str(run / "model.onnx") in shown
    assert "at batch 1 and 5" in shown
    merged = shoal.load(run)
    assert norms(merged) == 0
    x = small_runs.digits().example_inputs(7)
    given = OnnxRunner(run / "model.onnx")(x)
    assert isinstance(given, torch.Tensor)
    for network in (merged, shoal.load(run, "best")):  # merging has changed nothing
        assert torch.allclose(given, network(x), atol=1e-4)


def test_pt2_into_a_file_of_ones_own_name(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "made" / "net.pt2"
    assert main(["export", str(run), "--format", "pt2", "--out", str(target)]) == 0
    program = torch.export.load(target).module()
    x = small_runs.digits().example_inputs(3)
    assert torch.allclose(program(x), shoal.load(run, "best")(x), atol=1e-4)


def test_json_tells_what_was_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["export", str(run), "--out", str(tmp_path / "a.pt2"), "--json"]
    assert main(given) == 0
    merged = json.loads(capsys.readouterr().out)
    assert main([*given, "--no-merge"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert merged["format"] == "pt2"
    assert merged["checked_batches"] == [1, 5]
    assert merged["max_rel_error"] <= merged["tolerance"]
    assert (merged["merged"], trained["merged"]) == (True, False)
    assert merged["depth"] <= trained["depth"]


def test_a_saved_network_is_merged_for_the_batch_size_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = shoal.save(shoal.load(run, "best"), tmp_path / "saved")
    before = (saved / "network.json").read_bytes()
    words = ["export", str(saved), "--batch", "2", "--format", "pt2", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(saved / "model.pt2")
    assert (saved / "network.json").read_bytes() == before


# ---------------------------------------------------------------------- what cannot be done


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["export", *map(str, words)]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    (line,) = seen.err.splitlines()
    assert line.startswith("shoal: ")
    return line


def test_a_folder_without_a_result(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = Path(shutil.copytree(run, tmp_path / "begun"))
    (begun / "result.json").unlink()
    shutil.rmtree(begun / "best")
    line = refused(capsys, begun)
    assert "has no result yet" in line
    assert str(begun / "steps" / "000") in line
    assert "there is no folder" in refused(capsys, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "network.json" in refused(capsys, tmp_path / "empty")


def test_files_and_formats_that_make_no_sense(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give onnx, pt2 or xml" in refused(capsys, run, "--format", "tflite")
    line = refused(capsys, run, "--format", "onnx", "--out", tmp_path / "a.pt2")
    assert "end in .onnx" in line
    assert "ends in .onnx or .pt2" in refused(capsys, run, "--out", tmp_path / "model")
    assert "omit it" in refused(capsys, run, "--no-merge", "--batch", 4)
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, run, "--out", tmp_path / "file" / "a.pt2")
    assert "cannot write" in refused(capsys, run, "--out", "/proc/shoal/a.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    line = refused(capsys, run, "--out", tmp_path / "a.onnx")
    assert "pip install 'shoal[onnx]'" in line
    assert not list(tmp_path.iterdir())


def test_a_stale_merge_is_not_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is going on may hold what an earlier end of it has merged."""
    going_on = Path(shutil.copytree(run, tmp_path / "run"))
    (going_on / "result.json").unlink()
    (going_on / "merged" / "model.safetensors").write_bytes(b"of another end")
    assert main(["export", str(going_on), "--format", "pt2"]) == 0


def test_int8_tells_the_accuracy_beside_floats(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    words = ["export", str(run), "--int8", "--data", "digits", "--out", str(tmp_path / "a.onnx")]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["precision"], found["samples"], found["format"]) == ("int8", 300, "onnx")
    for part in ("top1_val", "top1_test"):
        before, after = found[part]
        assert abs(before - after) <= 1.5
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "top-1 validation: " in shown
    assert "% in int8 (" in shown


def test_int8_and_data_go_together(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "add it" in refused(capsys, run, "--data", "digits")
    assert "add --data D" in refused(capsys, run, "--int8")
    line = refused(capsys, run, "--int8", "--data", "digits", "--format", "pt2")
    assert "let it end in .onnx (onnxruntime)" in line


def test_a_run_with_a_task_of_ones_own_is_exported_without_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    with (copy / "config.yaml").open("a") as file:
        file.write("\ntask: gone.py:Mine\n")
    assert main(["export", str(copy), "--out", str(tmp_path / "a.onnx")]) == 0
    assert main(["inspect", str(copy)]) == 0
    capsys.readouterr()
    assert "give --task" in refused(capsys, copy, "--int8", "--data", "digits")
