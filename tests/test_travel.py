"""A result goes elsewhere: its folder, or its file, says all that is needed to use it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import processes
import shoal
import small_runs
from shoal.cli import main
from shoal.errors import PlanError

MODEL = f"{small_runs.__file__}:build"
ABOUT = {"classes": [str(n) for n in range(10)], "mean": [0.5], "std": [0.5]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("travel") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small_runs.untimed_commands(patch)
        words = ["compress", MODEL, "--data", "digits", "--train-samples", "250", "--max-drop",
                 "100", "--epochs", "0", "--method", "easier", "--out", str(out)]  # fmt: skip
        assert main(words) == 0
    return out


@pytest.mark.parametrize("part", ["merged", "best"])
def test_a_result_says_what_it_is_for_and_what_was_measured(run: Path, part: str) -> None:
    record = json.loads((run / "result.json").read_text())
    net = shoal.load(run, part)
    assert net.meta["classes"] == ABOUT["classes"]
    assert net.meta["mean"] == ABOUT["mean"]
    assert net.meta["std"] == ABOUT["std"]
    assert net.meta["input_shape"] == [1, 8, 8]
    assert (net.meta["task"], net.meta["quality"]) == ("classify", "top-1")
    assert net.meta["data"] == "digits"
    figures, latency = net.meta["figures"], record["latency"]
    assert figures["test"] == {
        "dense": record["dense"]["top1_test"],
        "this": record["final"]["top1_test"],
    }
    assert figures["depth"] == {"dense": record["dense"]["depth"], "this": latency["merged_depth"]}
    assert figures["macs"]["this"] == latency["merged_macs"]
    (timed,) = figures["latency"]
    assert (timed["runtime"], timed["batch"], timed["unit"]) == ("eager", 1, "ms")
    assert net.meta["machine"] == record["machine"]
    assert record["machine"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == torch.get_num_threads()


def test_steps_know_their_labels_and_no_figures(run: Path) -> None:
    meta = shoal.load(run, step=0).meta
    assert meta["classes"] == ABOUT["classes"]
    assert "figures" not in meta


def test_inspect_shows_all_of_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in out
    assert "normalisation of pixels from 0 to 1: mean 0.5, deviation 0.5\n" in out
    assert " at batch 1: 1 ms → 1 ms; dense / this " in out
    assert f"PyTorch {torch.__version__}" in out
    assert main(["inspect", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["about"] == shoal.load(run, "best").meta


def test_inspect_normalises_as_the_network_was_trained(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def scored(*words: str) -> Any:
        given = ("inspect", str(folder), "--data", "digits", "--samples", "100", "--json", *words)
        assert main(list(given)) == 0
        return [site["on_percent"] for site in json.loads(capsys.readouterr().out)["sites"]]

    net = shoal.load(run, step=0)
    folder = shoal.save(net, tmp_path / "as-trained")
    usual = scored()
    assert scored("--mean", "0.5", "--std", "0.5") == usual
    shifted = scored("--mean", "0.1", "--std", "0.9")
    assert shifted != usual
    net.meta |= {"mean": [0.1], "std": [0.9]}
    folder = shoal.save(net, tmp_path / "shifted")
    assert scored() == shifted
    assert main(["inspect", str(run), "--mean", "0.5"]) == 2
    assert "add --data" in capsys.readouterr().err


def elsewhere(folder: str, file: str) -> None:
    """Use a run where there is neither its model's source nor any extra."""
    for name in ("torchvision", "timm", "onnx", "onnxruntime", "openvino", "small_runs"):
        sys.modules[name] = None  # type: ignore[assignment]
    net = shoal.load(folder)
    assert net(*net.example_inputs(3)[0]).shape == (3, len(net.meta["classes"]))
    for words in (
        ["report", folder, "--json"],
        ["inspect", folder],
        ["export", folder, "--format", "pt2", "--out", file],
        ["benchmark", folder, "--seconds", "0"],
    ):
        assert main(words) == 0, words


@pytest.mark.long
def test_a_run_that_was_moved_works_without_its_models_source(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "another place" / "copy"
    shutil.copytree(run, moved)
    file = tmp_path / "model.pt2"
    started = processes.start(tmp_path, elsewhere, str(moved), str(file))
    assert started.wait() == 0, started.printed()
    beside = {"shoal.json": ""}
    program = torch.export.load(file, extra_files=beside)
    told = json.loads(beside["shoal.json"])
    assert told == shoal.load(run).meta
    inputs = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
    torch.testing.assert_close(program.module()(inputs), shoal.load(run)(inputs))


def test_an_onnx_file_says_it_too(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = shoal.load(run)
    for name, options in (("f.onnx", {}), ("q.onnx", {"int8": small_runs.digits().train})):
        shoal.export(net, tmp_path / name, **options)
        session = onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        held = session.get_modelmeta().custom_metadata_map
        told = {k: json.loads(v) for k, v in held.items() if k.startswith("shoal.")}
        assert told == {f"shoal.{name}": value for name, value in net.meta.items()}


def test_labels_come_from_a_loaders_data_set_or_from_the_caller(tmp_path: Path) -> None:
    digits = small_runs.digits()
    result = small_runs.run(epochs=0)
    assert result.merged.meta["classes"] == list(digits.classes)
    assert result.merged.meta["mean"] == list(digits.mean)
    assert result.model.meta == result.merged.meta
    result = small_runs.run(epochs=0, about={"classes": list("abcdefghij"), "owner": "me"})
    assert result.merged.meta["classes"][:2] == ["a", "b"]
    assert result.merged.meta["owner"] == "me"
    again = shoal.load(shoal.save(result.merged, tmp_path / "net"))
    assert again.meta == result.merged.meta


@pytest.mark.parametrize(
    ("meta", "what"),
    [
        ({"classes": "cat"}, "classes"),
        ({"std": [0.0]}, "std.0"),
        ({"mean": [float("nan")]}, "JSON"),
        ({"figures": {"depth": {"dense": 3}}}, "figures.depth.this"),
        ({"own": {1, 2}}, "set is not JSON"),
    ],
)
def test_what_goes_with_a_network_is_checked_when_it_is_saved(
    tmp_path: Path, meta: dict[str, Any], what: str
) -> None:
    net = shoal.capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    net.meta |= meta
    with pytest.raises(PlanError, match=what):
        shoal.save(net, tmp_path / "net")


def test_names_of_classes_cannot_move_the_cursor(tmp_path: Path, capsys: Any) -> None:
    net = shoal.capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(2, 4))
    net.meta["classes"] = ["cat\x1b[2J", "dog\nfish", "ok"]
    assert main(["inspect", str(shoal.save(net, tmp_path / "net"))]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "classes: cat?[2J, dog fish, ok" in out
