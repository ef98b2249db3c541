"""`shoal compare`: figures of several networks, and latencies from the same rounds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import shoal
import small_runs
from shoal.cli import main

MODEL = f"{small_runs.__file__}:build"
QUICK = ["--seconds", "0", "--threads", "1", "--batch", "2", "--runtime", "eager"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({n: t.contiguous() for n, t in small_runs.trained().state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small_runs.untimed_commands(patch)
        words = [MODEL, "--checkpoint", str(weights), "--data", "digits", "--train-samples", "250",
                 "--batch-size", "50", "--precision", "fp32", "--max-drop", "100",
                 "--val-fraction", "0.25", "--remove", "2", "--out", str(folder)]  # fmt: skip
        assert main(["compress", *words]) == 0
    return folder


def compared(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["compare", *map(str, words), *QUICK, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.long
def test_a_model_against_a_run(
    run: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = compared(capsys, MODEL, run, "--checkpoint", weights)
    given, folded, merged = found["networks"]
    assert given["name"] == f"{MODEL}, as given"
    assert folded["name"] == f"{MODEL}, batch norms folded"
    assert merged["name"] == f"{run}, merged"
    assert [one["sites_left"] for one in found["networks"]] == [4, 4, 2]
    assert given["params"] > folded["params"]
    result = json.loads((run / "result.json").read_text())
    # on the run's own data, though nothing was said of them
    for name in ("top1_val", "top1_test"):
        assert given[name] == folded[name] == result["dense"][name]
        assert merged[name] == pytest.approx(result["final"][name], abs=0.5)
    ((eager,),) = found["latency"]
    assert eager["baseline"] == folded["name"]
    assert set(eager["latency"]) == {one["name"] for one in found["networks"]}
    assert eager["ratio"][folded["name"]]["median"] == 1.0
    assert {"q1", "q3", "low", "high"} <= set(eager["ratio"][merged["name"]])
    assert {one["batch_size"] for one in eager["latency"].values()} == {2}


@pytest.mark.long
def test_tables_at_each_batch_size_and_in_both_runtimes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("COLUMNS", "220")
    saved = shoal.save(shoal.load(run, "best"), tmp_path / "saved")
    words = [str(run), str(saved), "--seconds", "0", "--threads", "1"]
    assert main(["compare", *words]) == 0
    out = capsys.readouterr().out
    assert "latency at batch 1, 1 thread\n" in out
    assert "latency at batch 64, 1 thread\n" in out
    assert out.count("ONNX Runtime ") == 2
    assert f"{saved}, batch norms folded" in out
    assert f"{run}, as given" not in out  # what a run gives is merged


@pytest.mark.long
def test_without_data_there_is_no_accuracy(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = shoal.save(shoal.load(run, "best"), tmp_path / "saved")
    found = compared(capsys, saved, MODEL)  # the model takes samples of the folder's shape
    assert found["data"] == ""
    assert {one["top1_val"] for one in found["networks"]} == {None}
    assert "give --data" in found["notes"][0]


@pytest.mark.long
def test_a_run_on_other_images_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 1"))
    found = compared(capsys, run, other)
    assert any(str(other) in note and "trust the test" in note for note in found["notes"])
    assert compared(capsys, run, run)["networks"][1]["name"] == f"{run} (2), merged"


def test_a_runtime_that_lacks_is_told_and_the_rest_measured(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.runtimes import onnx_runner as runtime

    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    words = [str(run), str(run), "--seconds", "0", "--batch", "1"]
    assert main(["compare", *words]) == 0
    out = capsys.readouterr().out
    assert "note: no latency in ONNX Runtime" in out
    assert "pip install 'shoal[onnx]'" in out
    assert "PyTorch " in out


# ---------------------------------------------------------------------- what cannot be done


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}"], "give two or more"),
        (["{run}", "{run}", "--checkpoint", "w.pt"], "give one for each"),
        (["{run}", "{empty}"], "network.json"),
        (["{run}", "shoal:nothing"], "nothing"),
        (["{run}", "{run}", "--data", "folder:/nowhere"], "/nowhere"),
    ],
)
def test_one_line_says_what_is_wrong(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    given = [word.format(run=run, empty=tmp_path) for word in words]
    assert main(["compare", *given, *QUICK]) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.splitlines()[-1].startswith("shoal: ")
    assert says in seen.err


@pytest.mark.long
def test_networks_for_other_inputs_are_not_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = shoal.save(shoal.load(run, "best"), tmp_path / "saved")
    words = [str(saved), "shoal:cifar_resnet20", "--input-shape", "3,32,32", *QUICK]
    assert main(["compare", *words]) == 2
    assert "takes samples of 1×8×8 and shoal:cifar_resnet20" in capsys.readouterr().err


@pytest.mark.long
def test_networks_are_measured_in_the_runtimes_that_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    words = ["--seconds", "0", "--threads", "1", "--batch", "2", "--input-shape", "1,8,8"]
    assert main(["benchmark", MODEL, *words, "--runtime", "onnxruntime"]) == 0
    assert "batch 2 of 1×8×8 in ONNX Runtime on cpu, 1 thread" in capsys.readouterr().out
    assert main(["compare", MODEL, MODEL, *words, "--runtime", "eager,onnxruntime", "--json"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["latency"]
    assert [one["runtime"] for one in measured] == ["eager", "onnxruntime"]
    assert main(["compare", MODEL, MODEL, *words, "--runtime", "eager,onnxruntme"]) == 2
    assert "did you mean 'onnxruntime'" in capsys.readouterr().err
