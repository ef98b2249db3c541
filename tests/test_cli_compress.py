from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import processes
import shoal
import small_runs
from shoal.cli import demo, main
from shoal.cli.compress import compress_flags
from shoal.sealed import read_sealed
from small_runs import result_of, without_times

MODEL = f"{small_runs.__file__}:build"


@pytest.fixture(autouse=True)
def _no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    small_runs.untimed_commands(monkeypatch)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({n: t.contiguous() for n, t in small_runs.trained().state_dict().items()}, path)
    return path


def words(weights: Path, out: Path, *more: str) -> list[str]:
    return [
        "compress", MODEL, "--checkpoint", str(weights), "--data", "digits", "--method", "easier",
        "--train-samples", "250", "--batch-size", "50", "--precision", "fp32", "--max-drop", "100",
        "--out", str(out), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small_runs.untimed_commands(patch)
        assert main(words(weights, folder, "--remove", "2")) == 0
    return folder


def test_it_says_what_it_did(run: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(weights, run, "--remove", "2")) == 0  # a finished run: at once
    seen = capsys.readouterr()
    for text in ("top-1 validation", "top-1 test", "rectifiers left", "depth", "MACs",
                 "parameters", "latency, merged, batch 1", "2 removed", "latency, 1 thread",
                 "dense / result", "the search decided by latency in PyTorch at batch 1",
                 f"shoal export {run}",
                 "ended because: removed 2, as asked", f"shoal.load('{run}', 'best')"):  # fmt: skip
        assert text in seen.out
    assert "faster" not in seen.out.lower().replace("is not faster than", "")
    assert "(done before)" in seen.err


def test_verbose_tells_what_was_merged(
    run: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    texts = ("merged, region by region", "ends there because", "'relu' is not linear")
    assert main(words(weights, run, "--remove", "2", "--verbose")) == 0
    assert all(text in capsys.readouterr().out for text in texts[:1])
    assert main(["report", str(run), "--merge"]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in texts)
    assert main(["report", str(run)]) == 0
    assert texts[0] not in capsys.readouterr().out


def test_progress_is_a_line_for_each_step_and_epoch(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--remove", "1", "--epochs", "2", "--dense-epochs", "1")
    assert main(words(weights, tmp_path / "run", *more)) == 0
    lines = capsys.readouterr().err.splitlines()
    assert sum("dense: epoch 1/1, loss" in line for line in lines) == 1
    assert sum("step 1: epoch" in line for line in lines) == 2
    assert sum(line.startswith("dense: validation") for line in lines) == 1
    assert sum(line.startswith("step 1/1: linearized last: validation") for line in lines) == 1
    assert not any("\x1b" in line for line in lines)


def test_json_is_the_result_and_nothing_else(
    run: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(weights, run, "--remove", "2", "--json")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert isinstance(printed.pop("front"), list)  # the steps worth a look
    kept = read_sealed(run / "result.json")
    assert printed == {name: value for name, value in kept.items() if name != "files"}
    assert {"dense", "final", "steps", "removed", "total"} <= set(printed)
    assert {"top1_val", "top1_test", "macs", "params", "depth", "latency_ms", "relus"} == set(
        printed["dense"]
    )


def test_its_configuration_runs_again_to_the_same_result(run: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    options = {
        flag.option.name for flag in compress_flags() if flag.panel not in ("Method", "Task")
    }
    assert options <= set(config)
    assert {"task", "output_index"} <= set(config)
    assert {"model", "data", "checkpoint", "method", "criterion", "energy"} <= set(config)
    again = tmp_path / "again"
    assert main(["compress", "--config", str(run / "config.yaml"), "--out", str(again)]) == 0
    assert result_of(again) == result_of(run)
    assert yaml.safe_load((again / "config.yaml").read_text()) == config
    for name in ("best", "merged"):
        one, other = (folder / name / "model.safetensors" for folder in (again, run))
        assert one.read_bytes() == other.read_bytes()


def test_flags_win_over_the_file(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    given = ["compress", "--config", str(run / "config.yaml"), "--out", str(again)]
    assert main([*given, "--remove", "1", "--no-skip-broken"]) == 0
    assert json.loads((again / "result.json").read_text())["removed"] == 1


def test_the_result_loads_without_the_model(run: Path) -> None:
    net = shoal.load(run, "best")
    assert len(net.plan.names("linearize")) == 2
    dense = shoal.load(run, "steps/000")
    assert len(dense.plan) == 0
    assert all(not torch.equal(net(x), dense(x)) for x in [small_runs.digits().example_inputs(4)])


@pytest.mark.long
def test_random_weights_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["compress", "shoal:digits_resnet?width=2", "--data", "digits", "--train-samples",
             "50", "--epochs", "0", "--remove", "1", "--max-drop", "100"]  # fmt: skip
    assert main([*given, "--out", str(tmp_path / "run")]) == 0
    assert "has random weights: give --checkpoint, or --dense-epochs" in capsys.readouterr().err


# ---------------------------------------------------------------------- report and benchmark


def test_report_shows_the_steps(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a narrow screen shortens the figures
    assert main(["report", str(run)]) == 0
    out = capsys.readouterr().out
    steps = json.loads((run / "result.json").read_text())["steps"]
    for step in steps:
        assert f"{step['top1_val']:.2f} %" in out
        assert all(name in out for name in step["names"])
    assert "(dense)" in out


def test_report_knows_a_run_that_is_not_finished(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "best")
    assert main(["report", str(folder)]) == 0
    assert "not finished" in capsys.readouterr().out
    assert main(["report", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    whole = json.loads((run / "result.json").read_text())
    assert "merge" not in printed
    for key in ("dense", "final", "steps", "removed", "total"):
        assert printed[key] == whole[key], key


@pytest.mark.long
def test_benchmark_compares_a_run_with_its_dense_network(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["benchmark", str(run), "--batch", "3", "--seconds", "0", "--threads", "1"]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert "dense / this" in out
    assert "batch 3 of 1×8×8 on cpu, 1 thread" in out
    assert main([*given, "--against", MODEL, "--json", "--input-shape", "1,8,8"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["batch_size"] == 3
    assert printed["baseline"]["params"] > printed["params"]  # a run's result is merged
    assert printed["speedup"]["pairs"] >= 3


# ---------------------------------------------------------------------- the demo


@pytest.fixture
def short_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    short = {
        "model": "shoal:digits_resnet?width=4", "train_samples": 150, "dense_epochs": 1,
        "epochs": 1, "final_epochs": 1, "tries": 1, "remove": 1, "max_drop": 100.0,
    }  # fmt: skip
    monkeypatch.setattr(demo, "_OPTIONS", {**demo._OPTIONS, **short})
    monkeypatch.chdir(tmp_path)


@pytest.mark.long
@pytest.mark.usefixtures("short_demo")
def test_the_demo_runs_once_and_shows_its_result_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    assert main(["demo"]) == 0
    first = capsys.readouterr()
    assert "the run is in 'shoal-demo'" in first.err
    assert "rectifiers left" in first.out
    assert main(["demo"]) == 0
    second = capsys.readouterr()
    assert "holds the finished run" in second.err
    assert second.out == first.out
    assert torch.get_num_threads() == threads
    assert main(["demo", "--seed", "1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shoal-demo", "shoal-demo-seed1"]


@pytest.mark.slow
def test_the_demo_removes_half_of_the_rectifiers_within_a_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    assert result["total"] == 13
    assert result["removed"] >= 7
    assert result["final"]["top1_val"] >= result["dense"]["top1_val"] - 1.0
    assert result["dense"]["top1_val"] > 95.0


# ---------------------------------------------------------------------- several processes


def compressed(given: list[str], timed: bool) -> None:
    if not timed:
        small_runs.untimed_commands(pytest.MonkeyPatch())
    assert main(given) == 0


@pytest.mark.slow
def test_two_processes_rehearse_together(weights: Path, tmp_path: Path) -> None:
    """What is measured is measured by one, what is trained is trained by both."""
    options = ("--method", "shoal", "--tries", "1", "--epochs", "1", "--remove", "2", "--json")
    given = words(weights, tmp_path / "two", *options)
    main_one, _ = processes.grouped(2, tmp_path, compressed, given, True)
    assert json.loads(main_one.out.read_text())["steps"][1]["names"]


@pytest.mark.long
def test_two_processes_end_like_one(run: Path, weights: Path, tmp_path: Path) -> None:
    given = words(weights, tmp_path / "two", "--remove", "2", "--json")
    main_one, other = processes.grouped(2, tmp_path, compressed, given, False)
    two = without_times(json.loads(main_one.out.read_text()))
    assert two.pop("front")[0] == 0
    assert two == result_of(tmp_path / "two")
    one = result_of(run)
    assert [step["names"] for step in two["steps"]] == [step["names"] for step in one["steps"]]
    assert two["dense"] == {**one["dense"], "macs": two["dense"]["macs"],
                            "depth": two["dense"]["depth"]}  # fmt: skip
    assert _scores(two) == _scores(one)
    assert main_one.err.read_text().count("dense: validation") == 1
    assert other.out.read_text() == ""


def _scores(result: dict[str, Any]) -> Any:
    """Return the scores of the dense network: counts over the same images, whoever counts."""
    return result["steps"][1]["scores"]
