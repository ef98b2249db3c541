"""A push to a stand-in of the hub, which keeps files in its layout, and what comes back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import shoal
import small_runs
from resealed import write_resealed
from shoal.cli import main
from shoal.errors import ConfigError, FileError, PlanError, ShoalError
from shoal.hub import repository
from shoal.share.card import card_of
from stand_in_hub import Hub

huggingface_hub = pytest.importorskip("huggingface_hub")


BASE = "/home/me/models.py:build?width=3&weights=/home/me/w.pt"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The stand-in, in the place of the client; what goes there is exported in no time."""
    monkeypatch.setattr(
        "shoal.share.pushing.export", lambda network, path: path.write_bytes(b"a file of ONNX")
    )
    stand_in = Hub(tmp_path / "hub")
    stand_in.folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("push") / "my run"
    given = {"model": BASE, "data": "folder:/home/me/photos", "checkpoint": "/home/me/w.pt"}
    small_runs.run(out, epochs=0, remove=2, base=BASE, config=given)
    return out


def card(hub: Hub, name: str) -> tuple[dict[str, Any], str]:
    """Return what the card's head says, and its text."""
    text = (sorted(hub.snapshots(name).glob("*"))[-1] / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_what_comes_back_computes_the_same_bits(hub: Hub, run: Path) -> None:
    done = shoal.push(run, "hf:me/small", license="mit")
    assert done.url == "https://huggingface.co/me/small"
    assert {"README.md", "network.json", "model.safetensors"} <= set(done.files)
    back, merged = shoal.load("hf:me/small"), shoal.load(run)
    inputs = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(back(inputs), merged(inputs))
    assert back.meta == merged.meta
    assert sorted(hub.fetched) == ["model.safetensors", "network.json"]  # no more is looked at
    assert not back.training


def test_the_card_tells_all_without_the_code(hub: Hub, run: Path) -> None:
    shoal.push(run, "hf:me/small", license="mit")
    head, body = card(hub, "me/small")
    record = json.loads((run / "result.json").read_text())
    assert head["license"] == "mit"
    assert head["library_name"] == "shoal"
    assert head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    by_name = {metric["name"]: metric for metric in result["metrics"]}
    assert by_name["top-1 (test)"]["type"] == "accuracy"
    assert by_name["top-1 (test)"]["value"] == pytest.approx(record["final"]["top1_test"], abs=1e-4)
    net = shoal.load(run)
    depths = (
        f"{record['latency']['merged_depth']} layers deep instead of {record['dense']['depth']}"
    )
    test = f"{record['final']['top1_test']:.2f} % instead of {record['dense']['top1_test']:.2f} %"
    for said in (
        "# small",
        depths,
        f"top-1 on test data {test}",
        'net = shoal.load("hf:me/small")',
        "# inputs: [batch, 1, 8, 8]",
        f"| depth, layers | {record['dense']['depth']} | {record['latency']['merged_depth']} |",
        "1 ms",
        f"PyTorch {torch.__version__}",
        net.meta["machine"]["date"],
        "10 classes, in the order of the outputs: `0`, `1`",
        "the mean [0.5] is subtracted",
        "linearized (2)",
        "test data took no part",
    ):
        assert said in body, said
    assert all(f"`{name}`" in body for name in net.plan.names("linearize"))
    assert "/home/me" not in body


def test_no_folder_of_this_machine_is_told(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.share.pushing.export", shoal.export)
    monkeypatch.chdir(run.parent)
    shoal.push(run.name, "hf:me/small")
    pushed = next(hub.snapshots("me/small").iterdir())
    for file in pushed.iterdir():
        content = file.read_bytes()
        assert b"/home/me" not in content, file.name
        assert str(run.parent).encode() not in content, file.name
    page = (pushed / "report.html").read_text()
    assert "models.py:build?width=3&amp;weights=w.pt" in page
    assert "folder:photos" in page


def test_the_page_is_of_the_run_whatever_lies_in_the_working_folder(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "config.yaml").write_text("data: folder:others\n")
    monkeypatch.chdir(tmp_path)
    shoal.push(run, "hf:me/small")
    page = (next(hub.snapshots("me/small").iterdir()) / "report.html").read_text()
    assert "folder:photos" in page
    assert "folder:others" not in page


def test_no_folder_of_this_machine_is_told_to_load(hub: Hub, run: Path) -> None:
    shoal.push(run, "hf:me/small")
    assert shoal.load("hf:me/small").plan.base == "models.py:build?width=3&weights=w.pt"


def test_a_saved_network_is_pushed_as_it_is(hub: Hub, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = shoal.capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4))
    net.meta["classes"] = ["cat", "`dog`\n\n# x", "fish"]
    done = shoal.push(shoal.save(net, tmp_path / "net"), "hf:me/own", private=True)
    assert hub.private == {"me/own": True}
    assert "report.html" not in done.files
    head, body = card(hub, "me/own")
    assert "license" not in head
    assert "no license was given" in body
    assert "3 classes, in the order of the outputs: `cat`, `'dog' # x`, `fish`" in body
    assert "Nothing was removed." in body
    inputs = torch.randn(5, 4)
    assert torch.equal(shoal.load("hf:me/own")(inputs), net(inputs))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.embed(ids) * mask).mean(1))


def test_the_card_calls_a_network_with_all_its_inputs_by_name() -> None:
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, 1)
    where = repository("hf:me/masked")
    for inputs, call in (
        ({"ids": ids, "mask": mask}, "ids=ids, mask=mask"),
        ((ids, mask), "input_0, input_1"),
    ):
        text = card_of(shoal.capture(Masked().eval(), inputs), where)
        assert f"outputs = net({call})  # inputs: [batch, 5], [batch, 5, 1]\n" in text


def test_a_card_without_figures_points_to_none() -> None:
    net = shoal.capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4))
    where = repository("hf:me/own")
    unlicensed, licensed = card_of(net, where), card_of(net, where, "mit")
    for text in (unlicensed, licensed):
        assert "above" not in text
        assert "latenc" not in text
    assert "## Limits\n\n- no license was given" in unlicensed
    assert "## Limits" not in licensed


def test_an_earlier_state_is_named_by_its_revision(hub: Hub, tmp_path: Path) -> None:
    net = shoal.capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4))
    for note in ("first", "second"):
        net.meta["note"] = note
        shoal.push(shoal.save(net, tmp_path / "net"), "hf:me/own")
    assert shoal.load("hf:me/own").meta["note"] == "second"
    assert shoal.load(f"hf:me/own@{0:040x}").meta["note"] == "first"


def test_the_command(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "hf:me/small", "--license", "apache-2.0"]) == 0
    said = capsys.readouterr().out
    assert "pushed to https://huggingface.co/me/small: README.md" in said
    assert 'net = shoal.load("hf:me/small")' in said
    assert main(["push", str(run), "me/small"]) == 2
    assert "write hf:ORG/NAME" in capsys.readouterr().err
    assert main(["push", str(run), "hf:me/small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["url"] == "https://huggingface.co/me/small"


@pytest.mark.long
def test_commands_take_a_name_on_the_hub_like_a_folder(
    hub: Hub,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shoal.push(run, "hf:me/small")
    assert main(["inspect", "hf:me/small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["about"] == shoal.load(run).meta
    assert main(["benchmark", "hf:me/small", "--seconds", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] > 0
    monkeypatch.chdir(tmp_path)
    assert main(["export", "hf:me/small", "--format", "pt2"]) == 0
    assert (tmp_path / "model.pt2").is_file()
    given = ["compress", "hf:me/small", "--data", "digits", "--out", str(tmp_path / "out")]
    assert main(given) == 2
    assert "give the model it was made of" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["hf:me", "hf:me/a/b", "hf:../x/y", "hf:", "hf:me/a b"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="write hf:ORG/NAME"):
        shoal.load(name)


def test_what_cannot_be_made_here_is_left_out_with_a_note(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*given: Any) -> None:
        raise ShoalError("exporting to .onnx needs the package 'onnx'")

    monkeypatch.setattr("shoal.share.pushing.export", lacking)
    done = shoal.push(run, "hf:me/small")
    assert done.notes == ("exporting to .onnx needs the package 'onnx'",)
    assert "model.onnx" not in done.files
    head, body = card(hub, "me/small")
    assert "onnx" not in head["tags"]
    assert "model.onnx" not in body


def test_what_goes_wrong_is_one_line(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FileError, match=r"cannot be fetched .404 Client Error Repository Not Found"
    ):
        shoal.load("hf:me/nothing")
    shoal.push(run, "hf:me/small")
    with pytest.raises(ConfigError, match="holds one network"):
        shoal.load("hf:me/small", "best")
    with pytest.raises(ConfigError, match="push to hf:me/small"):
        shoal.push(run, "hf:me/small@main")
    (next(hub.snapshots("me/small").iterdir()) / "network.json").unlink()
    with pytest.raises(PlanError, match="shoal did not push it"):
        shoal.load("hf:me/small")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ShoalError, match=r"pip install 'shoal\[hub\]'"):
        shoal.load("hf:me/small")


def test_a_repository_is_as_safe_as_a_folder(hub: Hub, run: Path) -> None:
    """It names what the table does not hold: nothing of it is called."""
    shoal.push(run, "hf:me/small")
    path = next(hub.snapshots("me/small").iterdir()) / "network.json"
    changed = path.read_text().replace('"ReLU"', '"os.system"').replace('"Conv2d"', '"os.system"')
    path.write_text(changed)
    with pytest.raises(PlanError, match="damaged"):
        shoal.load("hf:me/small")
    write_resealed(path, changed)
    with pytest.raises(PlanError, match=r"os\.system"):
        shoal.load("hf:me/small")


def test_the_hubs_own_client_reads_its_cache_without_a_network(
    hub: Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shoal.push(run, "hf:me/small")
    cached = hub.snapshots("me/small").parent
    commit = next(hub.snapshots("me/small").iterdir()).name
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub.folder))
    inputs = torch.zeros(2, 1, 8, 8)
    assert torch.equal(shoal.load("hf:me/small")(inputs), shoal.load(run)(inputs))
