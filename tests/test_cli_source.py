"""Data that a command reads are normalised as the network beside them was trained."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import shoal
import small_runs
from shoal.cli import main
from shoal.cli.source import normalised, read_data
from shoal.data import DataSet
from shoal.errors import ConfigError, ShoalError
from shoal.search.job_model import usual_normalisation

CPU = torch.device("cpu")
MODEL = f"{small_runs.__file__}:build"
FACTORY = f"{__file__}:of_ones_own"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network that says its images had the mean 0.25 and the deviation 0.125."""
    net = shoal.capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.zeros(2, 1, 8, 8))
    net.meta.update(mean=[0.25], std=[0.125])
    return str(shoal.save(net, tmp_path_factory.mktemp("saved") / "net"))


def of_ones_own() -> tuple[list[Any], list[Any]]:
    batches = [(torch.zeros(4, 1, 8, 8), torch.arange(4))]
    return batches, batches


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="timm or torchvision is not installed",
)
def test_weights_for_imagenets_mean_leave_the_data_their_own() -> None:
    half = (0.5, 0.5, 0.5)
    for known in (usual_normalisation, normalised):
        assert known("torchvision:resnet18", True) == {}
        assert known("timm:vit_tiny_patch16_224") == {}  # its weights are not asked for
        assert known("timm:vit_tiny_patch16_224", True) == {"mean": half, "std": half}
    data = read_data("digits", CPU, model="torchvision:resnet18", pretrained=True)
    assert (data.mean, data.std) == ((0.5,), (0.5,))


def test_a_saved_networks_normalisation_stands_below_the_runs_and_what_is_asked_for(
    saved: str,
) -> None:
    def read(*run: dict[str, Any], **asked: Any) -> DataSet:
        return read_data("digits", CPU, *run, model=saved, **asked)

    assert (read().mean, read().std) == ((0.25,), (0.125,))
    assert read({"mean": None, "std": None}).mean == (0.25,)
    run = {"mean": [0.75], "std": [0.5]}
    assert (read(run).mean, read(run).std) == ((0.75,), (0.5,))
    assert read(run, mean=(0.1,)).mean == (0.1,)
    assert read(mean=(0.1,)).std == (0.125,)
    assert read_data("digits", CPU, model=MODEL).mean == (0.5,)


def test_images_of_other_channels_are_refused_by_their_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = shoal.capture(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8))
    net.meta.update(mean=[0.25] * 3, std=[0.125] * 3)
    shoal.save(net, tmp_path / "net")
    assert main(["robustness", str(tmp_path / "net"), "--data", "digits"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "takes samples of 3×8×8 and the data give 1×8×8" in said


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--image-size", "16"), ("--input-shape", "1,16,16"), ("--num-classes", "3")],
)
def test_the_shape_of_a_folders_network_is_not_asked_for(
    saved: str, flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"'{saved}' is a folder with a network of its own: omit {flag}"
    for words in (["benchmark"], ["benchmark", saved, "--against"], ["inspect"]):
        assert main([*words, saved, flag, value]) == 2
        assert said in capsys.readouterr().err
    assert main(["compare", saved, saved, flag, value]) == 2
    assert said in capsys.readouterr().err


def test_a_shape_is_for_the_model_beside_a_folder(
    saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--num-classes", "10", "--input-shape", "1,8,8", "--seconds", "0"]
    assert main(["benchmark", "shoal:digits_resnet", "--against", saved, *words]) == 0
    assert "batch 1 of 1×8×8 on cpu" in capsys.readouterr().out


def test_a_factory_is_asked_for_nothing_that_nobody_gave(saved: str) -> None:
    run = {"data": FACTORY, "train_samples": 3, "image_size": 9, "mean": [0.75], "std": [0.5]}
    assert read_data(FACTORY, CPU, run, model=saved, image_size=None).mean == ()
    with pytest.raises(ConfigError, match="image_size does not apply to the data factory"):
        read_data(FACTORY, CPU, run, model=saved, image_size=9)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options with which a command reads its data, which ends it."""
    found: list[dict[str, Any]] = []

    def stop(name: str, **options: Any) -> None:
        found.append(options)
        raise ShoalError("enough")

    monkeypatch.setattr("shoal.search.job_model.load_data", stop)
    return found


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "{}"],
        ["export", "{}", "--int8", "--out", "net.onnx"],
        ["compare", MODEL, "{}"],
        ["robustness", "{}"],
        ["figure", "criteria", "{}", "--out", "map.png"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_reads_data_as_the_saved_network_says(
    words: list[str], saved: str, read: list[dict[str, Any]]
) -> None:
    words = [word.format(saved) for word in words]
    assert main([*words, "--data", "digits"]) == 2
    ((mean, std),) = ((one["mean"], one["std"]) for one in read)
    assert (mean, std) == ((0.25,), (0.125,))
    assert main([*words, "--data", FACTORY]) == 2
    assert not {"mean", "std"} & set(read[1])


@pytest.mark.parametrize(
    "words",
    [
        ["export", "{}", "--int8", "--out", "net.onnx"],
        ["compare", MODEL, "{}"],
        ["robustness", "{}"],
    ],
    ids=lambda words: words[0],
)
def test_a_runs_own_options_come_before_what_its_network_says(
    words: list[str], saved: str, tmp_path: Path, read: list[dict[str, Any]]
) -> None:
    shutil.copytree(saved, tmp_path / "best")
    told = {"data": "digits", "mean": [0.75], "std": [0.5], "download": True, "workers": 9}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    assert main([*(word.format(tmp_path) for word in words), "--data", "digits"]) == 2
    assert (read[0]["mean"], read[0]["std"]) == ([0.75], [0.5])
    assert not {"download", "workers"} & set(read[0])  # the folder may be a stranger's
