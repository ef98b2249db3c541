from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import small_runs
from shoal.cli import main
from shoal.extras import robustness as measure

MODEL = f"{__file__}:Tiny"


class Tiny(nn.Module):
    """One residual block, for images of any size."""

    def __init__(self, num_classes: int = 2, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 4, 3, stride=4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.relu(self.conv2(x)) + x
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 32×32 images: 8 each to train on, 6 to test."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 6)):
        for label, name in enumerate(("dark", "light")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 128, (32, 32, 3)) + 120 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def corrupting(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Stands in for the package: brightens by the severity, and notes each call."""
    calls: list[tuple[str, int]] = []

    def corrupt(image: measure.Image, severity: int, name: str, seed: int) -> measure.Image:
        calls.append((name, severity))
        return (image // (1 + severity)).astype(np.uint8)

    monkeypatch.setattr(measure, "_library", lambda: corrupt)
    return calls


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness") / "run"
    torch.manual_seed(0)
    weights = folder.parent / "w.pt"
    torch.save(Tiny().state_dict(), weights)
    with pytest.MonkeyPatch.context() as patch:
        small_runs.untimed_commands(patch)
        words = ["compress", MODEL, "--checkpoint", str(weights), "--data", f"folder:{photos}",
                 "--method", "layer_pruning", "--criterion", "last", "--epochs", "0", "--remove",
                 "1", "--max-drop", "100", "--batch-size", "4", "--precision", "fp32", "--mean",
                 "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--out", str(folder)]  # fmt: skip
        assert main(words) == 0
    return folder


def test_a_run_shows_dense_beside_its_result(
    run: Path, capsys: pytest.CaptureFixture[str], corrupting: list[tuple[str, int]]
) -> None:
    assert main(["robustness", str(run), "--severities", "1,3"]) == 0
    out = capsys.readouterr().out
    for words in ("dense", "result", "change", "none", "mean of all", "12 test images",
                  "severities 1, 3", "seed 0", "strengths of ImageNet-C", "32 pixels",
                  *measure.CORRUPTIONS):  # fmt: skip
        assert words in out
    assert len(corrupting) == 12 * 15 * 2  # once for both networks


def test_json_holds_every_accuracy_and_the_runs_own_normalisation(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corruptions", "fog,snow", "--severities", "1,5", "--json"]
    assert main(["robustness", str(run), *words]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["part"] == "test"
    assert printed["image_size"] == 32
    assert set(printed["networks"]) == {"dense", "result"}
    dense = printed["networks"]["dense"]
    assert dense["samples"] == 12
    assert dense["severities"] == [1, 5]
    assert set(dense["by_corruption"]) == {"fog", "snow"}
    assert dense["mean"] == pytest.approx(fmean(map(fmean, dense["by_corruption"].values())))
    # The same network and data by name; the run's config.yaml told mean and std above.
    given = [str(run / "steps" / "000"), "--data", f"folder:{photos}", *words]
    scale = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"]
    assert main(["robustness", *given, *scale]) == 0
    alone = json.loads(capsys.readouterr().out)["networks"]["network"]
    assert alone == dense
    recorded = json.loads((run / "result.json").read_text())
    assert dense["clean"] == pytest.approx(recorded["dense"]["top1_test"])
    result = printed["networks"]["result"]
    assert result["clean"] == pytest.approx(recorded["final"]["top1_test"])


def test_few_samples_have_all_classes(
    run: Path, capsys: pytest.CaptureFixture[str], corrupting: list[tuple[str, int]]
) -> None:
    words = ["--samples", "4", "--corruptions", "fog", "--severities", "2"]
    assert main(["robustness", str(run), *words]) == 0
    assert corrupting == [("fog", 2)] * 4
    assert "4 test images" in capsys.readouterr().out


def test_bad_input_is_one_line(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = ["--data", f"folder:{photos}"]
    for words, expected in (
        ([str(run), "--severities", "1,6"], "severity is 6: give a whole number from 1 to 5"),
        ([str(run), "--severities", "high"], "severities is 'high'"),
        ([str(run), "--corruptions", "fogg"], "did you mean 'fog'"),
        ([str(run), "--corruptions", ","], "names with commas"),
        ([str(run), "--image-size", "16"], "corruptions need 32"),
        ([str(run), "--checkpoint", "w.pt"], "omit --checkpoint"),
        ([MODEL], "no data are given: add --data D"),
        ([str(tmp_path), *data], "has no network.json"),
        (["shoal:cifar_resnet21", *data], "did you mean"),
    ):
        assert main(["robustness", *words]) == 2, words
        seen = capsys.readouterr()
        assert seen.out == ""
        line = seen.err.splitlines()[-1]
        assert line.startswith("shoal: ")
        assert expected in line


def test_a_missing_package_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert main(["robustness", str(run), "--samples", "2"]) == 2
    assert "pip install 'shoal[robustness]'" in capsys.readouterr().err


def test_an_edited_configuration_does_no_harm(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(run, tmp_path / "run"))
    words = ["robustness", str(folder), "--corruptions", "fog", "--severities", "1"]
    (folder / "config.yaml").write_text("mean: grey\ndata: digits\n")
    assert main(words) == 2
    assert "mean is 'grey'" in capsys.readouterr().err
    (folder / "config.yaml").write_text("[1")
    assert main(words) == 2
    assert "no data are given" in capsys.readouterr().err
    assert main([*words, "--data", f"folder:{photos}"]) == 0
    made = tmp_path / "made"
    (folder / "config.yaml").write_text(f"data: 'os:mkdir?path={made}'\n")
    assert main(words) == 2
    assert "code that a folder names is never run: give --data" in capsys.readouterr().err
    assert not made.exists()


def grey() -> tuple[list[Any], list[Any]]:
    """Batches of one's own, which do not say by what they are normalised."""
    torch.manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4) % 2)] * 2
    return batches, batches


def test_data_of_ones_own_are_told_how_they_are_normalised(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["robustness", MODEL, "--data", f"{__file__}:grey", "--corruptions", "fog"]
    assert main(words) == 2
    assert "give mean and std" in capsys.readouterr().err
    assert main([*words, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]) == 0
    assert "8 validation images" in capsys.readouterr().out
