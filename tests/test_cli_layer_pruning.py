"""Every option of the search reaches the method through the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import shoal
import small_runs
from shoal.cli import main
from shoal.data import load_data
from shoal.models import digits_resnet

MODEL = "shoal:digits_resnet?width=4"
BLOCKS = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2"]

Prune = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    small_runs.untimed_commands(monkeypatch)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    torch.manual_seed(1)
    save_file({n: t.contiguous() for n, t in digits_resnet(width=4).state_dict().items()}, path)
    return path


@pytest.fixture
def prune(weights: Path, tmp_path: Path) -> Prune:
    """Runs `shoal compress --method layer_pruning`, and returns its `result.json`."""

    def run(*words: object) -> dict[str, Any]:
        given = [
            "compress", MODEL, "--checkpoint", weights, "--data", "digits", "--train-samples", 100,
            "--batch-size", 50, "--precision", "fp32", "--max-drop", 100, "--epochs", 0,
            "--method", "layer_pruning", "--out", tmp_path / "run", *words,
        ]  # fmt: skip
        assert main([str(word) for word in given]) == 0
        return dict(json.loads((tmp_path / "run" / "result.json").read_text()))

    return run


def gone(result: dict[str, Any]) -> list[list[str]]:
    return [step["names"] for step in result["steps"][1:]]


def test_steps_and_their_number(prune: Prune) -> None:
    result = prune("--criterion", "last", "--per-step", 2, "--remove", 3)
    assert gone(result) == [["layer2.2", "layer2.1"], ["layer1.2"]]
    assert result["removed"] == 3
    assert result["total"] == 5


def test_floors(prune: Prune) -> None:
    result = prune("--criterion", "last", "--keep-first", "--keep-per-stage", 2)
    # Three blocks in each stage, of which the second stage's first cannot go.
    assert gone(result) == [["layer2.2"], ["layer1.2"]]
    assert result["stopped"] == "nothing is left to remove"


def test_importance_per_latency(prune: Prune, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = dict(zip(BLOCKS, (1.0, 1.0, 100.0, 1.0, 1.0), strict=True))
    table = {f"drop {name}": value for name, value in saved.items()}
    monkeypatch.setattr(small_runs.FakeGauge, "saved_ms", lambda *_: (200.0, table))
    result = prune("--criterion", "l1", "--per-latency", "--remove", 1)
    assert gone(result) == [["layer1.2"]]


def test_samples_and_seed(prune: Prune, tmp_path: Path) -> None:
    result = prune("--criterion", "block_influence", "--samples", 20, "--seed", 3, "--remove", 1)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "samples: 20" in config
    assert "seed: 3" in config
    data = load_data("digits", train_samples=100, batch_size=50, seed=3)
    dense = shoal.load(tmp_path / "run" / "steps" / "000")
    scores = shoal.score(dense, data.train, "block_influence", 20)
    assert result["steps"][1]["scores"] == pytest.approx(dict(scores), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("criterion", ["snip", "grasp"])
def test_pruning_at_initialization(
    criterion: str, prune: Prune, tmp_path: Path, weights: Path
) -> None:
    result = prune(
        "--criterion", f"{criterion}?statistics=batch", "--dense-epochs", 1, "--rewind", 0,
        "--score-on", "rewound", "--remove", 1,
    )  # fmt: skip
    untrained = shoal.load(tmp_path / "run", "best")
    given = digits_resnet(width=4)
    given.load_state_dict(load_file(weights))
    state = given.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in untrained.state_dict().items())
    data = load_data("digits", train_samples=100, batch_size=50)
    net = shoal.capture(given.eval(), data.example_inputs(4))
    scores = shoal.score(net, data.train, criterion, statistics="batch")
    assert result["steps"][1]["scores"] == pytest.approx(dict(scores), rel=1e-4)


def test_rewinding_to_a_file(prune: Prune, tmp_path: Path) -> None:
    torch.manual_seed(5)
    early = digits_resnet(width=4)
    torch.save(early.state_dict(), tmp_path / "early.pt")
    prune("--criterion", "last", "--rewind-from", tmp_path / "early.pt", "--remove", 1)
    state = early.state_dict()
    found = shoal.load(tmp_path / "run", "best").state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_what_does_not_go_together_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, expected in (
        (["--keep-per-stage", "-1"], "--keep-per-stage is -1"),
        (["--rewind", "2"], "raise dense_epochs"),
        (["--rewind", "0", "--rewind-from", "w.pt"], "choose one of them"),
        (["--score-on", "rewound"], "nothing is rewound"),
        (["--score-on", "both"], "give one of trained, rewound"),
        (["--criterion", "ckaa"], "did you mean 'cka'"),
        (["--rewind-from", str(tmp_path / "w.pt")], "w.pt"),
        (["--energy", "--country", "Germany"], "give three letters"),
    ):
        given = ["compress", MODEL, "--data", "digits", "--method", "layer_pruning", *words]
        assert main([*given, "--out", str(tmp_path / "run")]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("shoal: ")
        assert expected in line
    assert not (tmp_path / "run" / "steps" / "000").exists()
