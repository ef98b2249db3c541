"""The twin of a result: its layers, trained from scratch."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import shoal
import small_runs
from shoal.cli import main
from shoal.cli.comparing import with_twins
from shoal.errors import ConfigError, RunError
from shoal.report import outcome_tables, read_run, twin_table, write_page
from shoal.report.notebook import result_html
from shoal.search.compress import size_of
from shoal.search.records import Result
from shoal.search.run_files import twin_of
from shoal.search.setup import Listener
from shoal.search.twin import epochs_of
from small_runs import FakeGauge, digits, run, same_weights

OPTIONS: dict[str, Any] = {"dense_epochs": 1, "epochs": 1, "remove": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin") / "run"
    run(folder, **OPTIONS)
    return folder


def twin(folder: Path, **options: Any) -> Result:
    data = digits()
    options.setdefault("gauge", FakeGauge(data.val))
    return shoal.twin(folder, data.train, data.val, test=data.test, device="cpu", **options)


@pytest.fixture(scope="module")
def trained(finished: Path) -> Result:
    return twin(finished)


def test_it_has_the_layers_of_the_result_and_the_epochs_of_the_run(
    finished: Path, trained: Result
) -> None:
    best, record = shoal.load(finished, "best"), read_run(finished)
    one, other = best.state_dict(), trained.model.state_dict()
    assert [(n, t.shape) for n, t in one.items()] == [(n, t.shape) for n, t in other.items()]
    assert [s.linearized for s in trained.model.sites] == [s.linearized for s in best.sites]
    assert not same_weights(best, trained.model)
    assert [step.operation for step in trained.steps] == ["dense"]
    assert trained.steps[0].epochs == epochs_of(record) == 3
    assert trained.dense.macs == record.final.macs
    assert trained.latency.merged_depth == record.latency.merged_depth
    assert trained.dense.top1_val > 30  # it learned: chance is 10
    assert trained.removed == 0
    assert not any("try" in note for note in trained.notes)


def test_the_seed_decides_it(finished: Path, trained: Result, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "twin")
    assert same_weights(twin(copy).model, trained.model)
    shutil.rmtree(copy / "twin")
    assert not same_weights(twin(copy, seed=1, epochs=1).model, trained.model)


def test_it_goes_on_where_it_was_interrupted(
    finished: Path, trained: Result, tmp_path: Path
) -> None:
    class Killer(Listener):
        def epoch(self, report: Any, epochs: int) -> None:
            if report.epoch == 1:
                raise KeyboardInterrupt

    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "twin")
    with pytest.raises(KeyboardInterrupt):
        twin(copy, listener=Killer())
    assert twin_of(read_run(copy)) is None  # not finished
    assert same_weights(twin(copy).model, trained.model)


def test_the_report_shows_it_beside_the_result(finished: Path, trained: Result) -> None:
    record = read_run(finished)
    found = twin_of(record)
    table = twin_table(record, found)
    assert table is not None
    assert table in outcome_tables(record, found)
    rows = {row.cells[0]: row.cells[1:] for row in table.rows}
    assert list(rows) == ["dense", "result", "twin"]
    assert rows["twin"][:3] == (trained.dense.top1_val, trained.dense.top1_test, 3)
    assert rows["result"][0] == record.final.top1_val
    assert (rows["dense"][2], rows["result"][2]) == (1, 3)
    assert rows["twin"][3] == rows["result"][3]


@pytest.mark.parametrize(
    ("options", "published"), [({}, [92.47, 92.10, 91.56]), ({"how": "line"}, None)]
)
def test_the_published_twin_stands_beside_it(
    finished: Path,
    trained: Result,
    tmp_path: Path,
    options: dict[str, Any],
    published: list[float] | None,
) -> None:
    about = {"model": "shoal:resnet18_cifar", "data": "cifar10:ROOT", "method": "easier"}
    told = yaml.safe_dump({**about, "how": "identity", **options})
    (tmp_path / "config.yaml").write_text(told)
    record = replace(read_run(finished), folder=tmp_path, removed=8)
    table = twin_table(record, trained)
    assert table is not None
    shown = [row.cells[5:] for row in table.rows]
    assert shown == [() if published is None else (value,) for value in published or [0.0] * 3]
    assert any("section 4.3" in note for note in table.notes) == (published is not None)


def test_compare_takes_it_along_unless_it_is_named(finished: Path, trained: Result) -> None:
    twins = str(finished / "twin")
    assert with_twins([str(finished)]) == ([str(finished), twins], [])
    assert with_twins(["resnet18", str(finished)])[0] == ["resnet18", str(finished), twins]
    assert with_twins([twins, str(finished)])[0] == [twins, str(finished)]


@pytest.mark.parametrize("file", ["best/network.json", "result.json"])
def test_a_damaged_twin_is_a_note_beside_the_intact_run(
    finished: Path,
    trained: Result,
    tmp_path: Path,
    file: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "twin" / file).write_text("{")
    remedy = f"remove '{copy / 'twin'}' and give `shoal twin` again"
    assert main(["report", str(copy)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "dense" in printed
    assert remedy in printed
    assert "give the run's command again" not in printed
    record = read_run(copy)
    assert remedy in html.unescape(write_page(record).read_text())
    assert remedy in html.unescape(result_html(record))
    models, notes = with_twins([str(copy)])
    assert models == [str(copy)]
    assert remedy in notes[0]


def test_compare_takes_no_twin_along_whose_merged_network_is_gone(
    finished: Path, trained: Result, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "twin" / "merged" / "network.json").unlink()
    models, notes = with_twins([str(copy)])
    assert models == [str(copy)]
    assert f"remove '{copy / 'twin'}'" in notes[0]


def test_the_epochs_of_the_result_are_those_that_made_its_network(
    finished: Path, trained: Result
) -> None:
    record = read_run(finished)
    *others, last = record.steps
    detour = replace(last, begun_from=0)  # the step before was given up
    table = twin_table(replace(record, steps=(*others, detour)), trained)
    assert table is not None
    assert table.rows[1].cells[3] == 2  # of dense, and of that step
    assert "as many epochs as the run spent in all (3)" in table.notes[0]


def test_a_twin_of_other_epochs_says_so(finished: Path, trained: Result) -> None:
    shorter = replace(trained, steps=(replace(trained.steps[0], epochs=2),))
    table = twin_table(read_run(finished), shorter)
    assert table is not None
    assert table.rows[2].cells[3] == 2
    assert "trained at once for 2 epochs, where the run spent 3 in all" in table.notes[0]


def test_the_twin_of_another_result_is_not_shown(
    finished: Path, trained: Result, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    assert twin_of(read_run(copy)) is not None
    run(copy, **OPTIONS | {"remove": 3})  # goes on, to other layers
    assert twin_of(read_run(copy)) is None
    with pytest.raises(RunError, match=r"twin' holds a run with other options") as caught:
        twin(copy)
    assert f": remove '{copy / 'twin'}' to train another twin, or give" in str(caught.value)
    shutil.rmtree(copy / "twin")
    twin(copy)


def test_the_twin_of_a_result_that_has_the_same_figures_is_not_shown(tmp_path: Path) -> None:
    run(tmp_path, how="identity", remove=1)
    twin(tmp_path, epochs=1)
    assert twin_of(read_run(tmp_path)) is not None
    before = read_run(tmp_path).final
    run(tmp_path, how="identity", remove=2)
    after = read_run(tmp_path)
    assert (after.final.macs, after.final.params) == (before.macs, before.params)
    assert twin_of(after) is None


def test_what_is_wrong_is_one_line(finished: Path, tmp_path: Path) -> None:
    data = digits()
    with pytest.raises(RunError, match="there is no folder"):
        twin(tmp_path / "none")
    with pytest.raises(ConfigError, match="the run had 250 of the train data and these are 150"):
        shoal.twin(finished, data.val, data.val, test=data.test)
    with pytest.raises(ConfigError, match=r"of the test data and these are none"):
        shoal.twin(finished, data.train, data.val)
    run(tmp_path / "untrained", epochs=0, remove=1)
    with pytest.raises(ConfigError, match="trained for no epoch: say how many, by epochs"):
        twin(tmp_path / "untrained")
    (tmp_path / "untrained" / "result.json").unlink()
    with pytest.raises(RunError, match="has no result yet"):
        twin(tmp_path / "untrained")


def test_the_size_of_data_is_in_samples_where_they_tell() -> None:
    batches = list(digits().val)
    given = digits().val, batches, iter(batches), None
    assert [size_of(loader) for loader in given] == [150, 3, None, None]


def test_a_network_that_came_trained_is_told(tmp_path: Path) -> None:
    run(tmp_path / "run", remove=1)
    found = twin(tmp_path / "run")
    assert any("came trained: the twin has the 1 epochs of the run" in n for n in found.notes)


def test_the_dense_trainings_recipe_trains_it_without_a_teacher(tmp_path: Path) -> None:
    recipe = {"lr": 0.02, "precision": "fp32", "distill": 0.5}
    run(tmp_path / "run", **OPTIONS | {"remove": 1}, dense_lr=0.07, recipe=recipe, budget=1.0)
    twin(tmp_path / "run")
    identity = json.loads((tmp_path / "run" / "twin" / "identity.json").read_text())
    assert (identity["lr"], identity["distill"], identity["dense_epochs"]) == (0.07, 0.0, 2)
    assert identity["method"] == "twin"


def test_the_command_takes_the_runs_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_runs.untimed_commands(monkeypatch)
    out = tmp_path / "run"
    words = [f"{small_runs.__file__}:build", "--data", "digits", "--train-samples", "250",
             "--batch-size", "50", "--precision", "fp32", "--method", "easier", "--max-drop",
             "100", "--dense-epochs", "1", "--remove", "1", "--device", "cpu"]  # fmt: skip
    assert main(["compress", *words, "--out", str(out)]) == 0
    capsys.readouterr()
    assert main(["twin", str(out), "--epochs", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = read_run(out / "twin")
    assert printed["dense"]["top1_val"] == record.dense.top1_val
    assert record.steps[0].epochs == 1
    assert main(["twin", str(out), "--epochs", "1"]) == 0  # done already: shown again
    assert "result and twin" in capsys.readouterr().out
    assert main(["twin", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize(
    "module", ["shoal.report.twin_table", "shoal.extras.figures.curves", "shoal.sweep.groups"]
)
def test_what_shows_published_figures_knows_the_methods(module: str) -> None:
    """In a process of its own: elsewhere other tests have imported them."""
    code = (
        f"import {module}\n"
        "from shoal.search.published import published_of\n"
        "run = {'model': 'shoal:resnet18_cifar', 'data': 'cifar10:DIR', 'method': 'easier'}\n"
        "print(published_of({**run, 'how': 'identity'}, 8).accuracy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "92.1"
