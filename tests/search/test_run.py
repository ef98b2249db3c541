from __future__ import annotations

import errno
import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import small_runs
from shoal.errors import FileError, RunError
from shoal.merge.loading import load
from shoal.merge.report import MergeReport
from shoal.network import Network
from shoal.sealed import read_sealed, unseal
from shoal.search.records import Result, lineage
from shoal.search.run import Run
from shoal.search.run_files import read_run
from shoal.search.setup import Listener
from small_runs import SITES, facts, result_of, run, same_weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run that was never interrupted, and what it returned."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, run(folder, epochs=2)


@pytest.fixture
def finished(whole: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of that run's folder, to do harm to."""
    return Path(shutil.copytree(whole[0], tmp_path / "finished"))


@pytest.mark.parametrize("steps", [2, 3])
def test_the_last_training_goes_on_like_a_step(tmp_path: Path, steps: int) -> None:
    options = {"remove": 1, "final_epochs": 2}
    whole = run(tmp_path / "whole", **options)
    assert len(whole.steps) == 3
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for lost in list((tmp_path / "stopped" / "steps").iterdir()):
        if int(lost.name) >= steps:
            shutil.rmtree(lost)
    (tmp_path / "stopped" / "result.json").unlink()
    again = run(tmp_path / "stopped", **options)
    assert facts(again) == facts(whole)
    assert same_weights(again.model, whole.model)
    made = lineage(read_run(tmp_path / "stopped").steps)
    assert [name for step in made for name in step.names] == list(whole.steps[1].names)


def test_a_finished_run_takes_a_last_training(finished: Path, tmp_path: Path) -> None:
    longer = {"epochs": 2, "final_epochs": 1, "final_lr": 0.01}
    added, whole = run(finished, **longer), run(tmp_path / "whole", **longer)
    assert facts(added) == facts(whole)
    assert same_weights(added.model, whole.model)
    assert added.steps[-1].operation == "fine-tune"
    assert yaml.safe_load((finished / "config.yaml").read_text())["final_epochs"] == 1
    with pytest.raises(RunError, match="final_epochs was 1 and is 2"):
        run(finished, **{**longer, "final_epochs": 2})


def test_a_run_goes_on_where_its_goals_are_farther(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", remove=2)
    run(tmp_path / "prolonged", remove=1)
    prolonged = run(tmp_path / "prolonged", remove=2)
    assert facts(prolonged) == facts(whole)
    assert same_weights(prolonged.model, whole.model)
    with pytest.raises(RunError, match="remove was 2 and is 1"):
        run(tmp_path / "prolonged", remove=1)


def test_steps_are_judged_anew_where_more_may_be_lost(tmp_path: Path) -> None:
    class Told(small_runs.FakeGauge):
        def quality(self, network: Network, data: Any) -> float:
            return {4: 90.0, 3: 85.0, 2: 89.5, 1: 70.0}[network.sites_left]

    folder, gauge = tmp_path / "run", Told(small_runs.digits().val)
    strict = run(folder, remove=3, max_drop=1.0, gauge=gauge)
    assert [step.within for step in strict.steps] == [True, False]
    assert strict.removed == 0
    loose = run(folder, remove=3, max_drop=6.0, gauge=gauge)
    assert [step.within for step in loose.steps] == [True, True, True, False]
    assert [step.within for step in read_run(folder).steps] == [True, True, True, False]
    assert loose.removed == 2
    with pytest.raises(RunError, match=r"max_drop was 6\.0 and is 1\.0"):
        run(folder, remove=3, max_drop=1.0, gauge=gauge)


def test_a_quality_may_be_below_zero(tmp_path: Path) -> None:
    class Losses(small_runs.FakeGauge):
        def quality(self, network: Network, data: Any) -> float:
            return {4: -2.0, 3: -2.5, 2: -4.0}[network.sites_left]

    gauge = Losses(small_runs.digits().val)
    found = run(tmp_path / "run", max_drop=1.0, gauge=gauge)
    assert [step.within for step in found.steps] == [True, True, False]
    assert run(tmp_path / "run", max_drop=1.0, gauge=gauge).steps == found.steps


# ---------------------------------------------------------------------- what a folder holds


def test_a_folder_holds_what_the_call_returned(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    assert result_of(folder) == facts(result)
    assert same_weights(load(folder, "best"), result.model)
    lines = (folder / "journal.jsonl").read_text().splitlines()
    assert [unseal(line, "") for line in lines] == [step.to_dict() for step in result.steps]
    assert len(list((folder / "steps").iterdir())) == 1 + len(SITES)
    assert not list(folder.glob("training*"))
    assert yaml.safe_load((folder / "config.yaml").read_text())["max_drop"] == 100.0


def test_a_run_in_memory_ends_like_one_in_a_folder(whole: tuple[Path, Result]) -> None:
    result = run(epochs=2)
    assert facts(result) == facts(whole[1])
    assert same_weights(result.model, whole[1].model)


def test_a_run_ends_merged(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    merged = load(folder)
    assert same_weights(merged, result.merged)
    assert merged.plan.operations[:-1] == result.model.plan.operations
    assert merged.plan.operations[-1].kind == "merge"
    x = small_runs.digits().example_inputs(6)
    assert torch.allclose(merged(x), load(folder, "best")(x), atol=1e-4)
    kept = json.loads((folder / "result.json").read_text())["merge"]
    assert kept == result.merge.to_dict()
    assert MergeReport.from_dict(kept) == result.merge
    assert result.merge.merged
    assert result.merge.max_rel_error <= 1e-5


def test_a_finished_run_is_not_measured_again(
    finished: Path, whole: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*given: Any) -> None:
        raise AssertionError("the run is finished")

    monkeypatch.setattr(small_runs.FakeGauge, "ending", measured)
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    result = run(finished, epochs=2)
    assert result.latency == whole[1].latency
    assert result.merge == whole[1].merge
    assert same_weights(result.merged, whole[1].merged)
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert {path for path in after if after[path] != before[path]} <= {finished / ".lock"}


@pytest.mark.parametrize(
    "lost", ["merged", "merged/network.json", "merged/model.safetensors", "best", "result.json"]
)
def test_an_end_that_is_not_whole_is_made_again(
    finished: Path, whole: tuple[Path, Result], lost: str
) -> None:
    """As a process leaves it that is killed while the end is written, or a disk that fails."""
    path = finished / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:50])
    result = run(finished, epochs=2)
    assert any(lost in n and "the end of the run was made again" in n for n in result.notes)
    assert result_of(finished) == result_of(whole[0])
    for name in ("best", "merged"):
        one, other = (folder / name / "model.safetensors" for folder in (finished, whole[0]))
        assert one.read_bytes() == other.read_bytes()


def test_the_trained_result_is_kept_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(small_runs.FakeGauge, "ending", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", remove=1)
    assert len(load(tmp_path / "run", "best").plan.names("linearize")) == 1
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.undo()
    assert run(tmp_path / "run", remove=1).removed == 1
    assert (tmp_path / "run" / "merged" / "network.json").exists()


def test_every_step_can_be_loaded(whole: tuple[Path, Result]) -> None:
    folder, result = whole
    net = load(folder, "steps/002")
    assert net.plan.names("linearize") == [name for step in result.steps[:3] for name in step.names]


def test_a_finished_run_gives_its_result_again(finished: Path, whole: tuple[Path, Result]) -> None:
    heard: list[bool] = []

    class Ears(Listener):
        def step(self, step: Any, resumed: bool) -> None:
            heard.append(resumed)

    result = run(finished, epochs=2, listener=Ears())
    assert heard == [True] * 5
    assert facts(result) == facts(whole[1])
    assert same_weights(result.model, whole[1].model)


# ---------------------------------------------------------------------- interruptions


class _Interrupt(Listener):
    """Presses Ctrl-C at the n-th thing it hears of."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.epochs: list[int] = []

    def _hear(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def stage(self, step: int, text: str) -> None:
        self._hear()

    def epoch(self, report: Any, epochs: int) -> None:
        self.epochs.append(report.epoch)
        self._hear()

    def step(self, step: Any, resumed: bool) -> None:
        if not resumed:
            self._hear()


def test_an_interrupted_run_ends_like_a_whole_one(
    whole: tuple[Path, Result], tmp_path: Path
) -> None:
    interruptions = 0
    for at in (1, 3, 4, 5, 7, 100):  # counted anew in each call
        try:
            result = run(tmp_path / "run", epochs=2, listener=_Interrupt(at))
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == 5
    assert facts(result) == facts(whole[1])
    assert result_of(tmp_path / "run") == result_of(whole[0])
    assert same_weights(result.model, whole[1].model)


def test_it_goes_on_within_a_steps_training(whole: tuple[Path, Result], tmp_path: Path) -> None:
    first = _Interrupt(at=6)  # evaluate, dense, score, evaluate, fine-tune, epoch 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", epochs=2, listener=first)
    assert first.epochs == [1]
    assert (tmp_path / "run" / "training-001.pt").exists()
    second = _Interrupt(at=100)
    result = run(tmp_path / "run", epochs=2, listener=second)
    assert second.epochs == [2] + [1, 2] * 3
    assert same_weights(result.model, whole[1].model)


def test_a_process_that_ends_before_its_first_step_leaves_a_folder_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.search import run as module

    original = module.write_file

    def stop_after_one(path: Path, content: Any) -> None:
        original(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_file", stop_after_one)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", remove=1)
    monkeypatch.undo()
    assert run(tmp_path / "run", remove=1).removed == 1
    assert (tmp_path / "run" / "config.yaml").exists()


# ---------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("full_at", [1, 4, 9, 14, 20])
def test_a_full_disk_loses_nothing(
    whole: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: int
) -> None:
    folder, calls = tmp_path / "run", 0

    def no_space(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(FileError, match=r"the disk is full, .*: free some space"):
        run(folder, epochs=2)
    kept = sorted(path.name for path in (folder / "steps").glob("*")) if folder.exists() else []
    assert all(name.isdigit() for name in kept)
    monkeypatch.undo()
    result = run(folder, epochs=2)
    assert facts(result) == facts(whole[1])
    assert result_of(folder) == result_of(whole[0])


def test_a_full_disk_while_weights_are_written_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from shoal.network import saving

    def full(*args: Any, **kwargs: Any) -> None:
        text = 'IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })'
        raise SafetensorError(f"Error while serializing: {text}")

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(FileError, match="the disk is full"):
        run(tmp_path / "run", remove=1)
    assert list((tmp_path / "run" / "steps").iterdir()) == []


# ---------------------------------------------------------------------- folders to refuse


def test_changed_options_are_named(finished: Path) -> None:
    before = result_of(finished)
    with pytest.raises(FileError) as caught:
        run(finished, epochs=3, max_drop=2.0)
    text = str(caught.value)
    assert "epochs was 2 and is 3" in text
    assert "max_drop was 100.0 and is 2.0" in text
    assert "choose another folder" in text
    with pytest.raises(RunError, match=r"lr was 0\.02 and is 0\.5"):
        run(finished, epochs=2, recipe={"lr": 0.5, "precision": "fp32"})
    with pytest.raises(RunError, match="its weights differ"):
        run(finished, epochs=2, model=small_runs.build(seed=1))
    with pytest.raises(RunError, match="batch_size was null and is 7"):
        run(finished, epochs=2, identity={"batch_size": 7})
    assert result_of(finished) == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match="holds files that are not a run's"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError) as caught:
        run(tmp_path / place)
    assert "\n" not in str(caught.value)
    assert "folder" in str(caught.value)


def test_two_runs_do_not_share_a_folder(finished: Path) -> None:
    identity = read_sealed(finished / "identity.json")
    first = Run(finished, identity, {})
    try:
        with pytest.raises(RunError, match="another process is at work"):
            Run(finished, identity, {})
    finally:
        first.close()
    Run(finished, identity, {}).close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("steps/001/step.json", "{"),
        ("steps/001/step.json", "{}"),
        ("steps/004/network.json", "[]"),
        ("identity.json", "no json"),
    ],
)
def test_a_damaged_record_is_named(finished: Path, name: str, content: str) -> None:
    (finished / name).write_text(content)
    with pytest.raises(RunError, match="damaged"):
        run(finished, epochs=2)


def test_a_missing_step_is_named(finished: Path) -> None:
    shutil.rmtree(finished / "steps" / "002")
    with pytest.raises(RunError, match="step 2 is missing"):
        run(finished, epochs=2)


def test_a_missing_result_is_written_again(finished: Path, whole: tuple[Path, Result]) -> None:
    (finished / "result.json").unlink()
    (finished / "journal.jsonl").unlink()
    shutil.rmtree(finished / "best")
    shutil.rmtree(finished / "steps" / "004")  # a run that was killed after its third step
    run(finished, epochs=2)
    assert result_of(finished) == result_of(whole[0])
    assert torch.is_tensor(next(load(finished, "best").parameters()))


def test_the_training_state_of_a_finished_step_is_of_no_use(
    finished: Path, whole: tuple[Path, Result]
) -> None:
    """A process may end after a step's folder is written and before its training's is removed."""
    shutil.rmtree(finished / "steps" / "004")
    (finished / "training-003.pt").write_bytes(b"of step 3")
    result = run(finished, epochs=2)
    assert facts(result) == facts(whole[1])
    assert not list(finished.glob("training*"))


def by_loss(network: Network, data: Any) -> float:
    return 50.0


def by_size(network: Network, data: Any) -> float:
    return 60.0


def mean_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return output.square().mean()


@pytest.mark.parametrize(
    ("begun", "now"),
    [
        ({"evaluate": by_loss}, {"evaluate": functools.partial(by_size)}),
        ({"evaluate": by_loss}, {}),
        ({}, {"loss": mean_square}),
        ({"fit": lambda network: None}, {"fit": by_loss}),
        ({}, {"fit": lambda network: None}),
    ],
)
def test_a_run_does_not_go_on_with_other_functions_of_the_users(
    tmp_path: Path, begun: dict[str, Any], now: dict[str, Any]
) -> None:
    run(tmp_path / "run", remove=1, **begun)
    with pytest.raises(RunError, match=f"other options: {next(iter({**begun, **now}))} was "):
        run(tmp_path / "run", remove=1, **now)
    run(tmp_path / "run", remove=1, **begun)
