"""A job: what its values must be, and what is said of it before the search begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import small_runs
from shoal import compat
from shoal.data import DataSet
from shoal.errors import ConfigError, OptionError, ShoalError
from shoal.search.job import job_of
from shoal.search.job_model import new_last_layer, read_for
from shoal.search.job_run import run_job
from shoal.search.setup import Listener

MODEL = f"{small_runs.__file__}:build"
DATA = f"{__file__}:loaders"
TIMM = "timm:vit_tiny_patch16_224.augreg_in21k"


class Counted(list[Any]):
    """Batches that tell how many samples they are of."""

    @property
    def num_samples(self) -> int:
        return sum(len(x) for x, _ in self)


def loaders() -> tuple[Any, Any]:
    """Return digits as a user's factory of data does, without the names of their classes."""
    data = small_runs.digits()
    return list(data.train), Counted(data.val)


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"task": 5}, OptionError, "task is 5: give a text"),
        ({"task": ["classify"]}, OptionError, "task is .*: give a text"),
        ({"recipe": 5}, ConfigError, "recipe is a int: give a Recipe, its name or its options"),
        ({"recipe": ["vit"]}, ConfigError, "recipe is a list"),
    ],
)
def test_what_yaml_reads_as_another_kind_is_one_line(
    values: dict[str, Any], error: type[ShoalError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        job_of({"model": MODEL, "data": DATA, **values}, {})
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- what is said of it


Said = Callable[..., list[str]]


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Do a job that is not searched for; returns the notes that come before the search."""
    monkeypatch.setattr("shoal.search.job_run.compress", lambda *given, **more: None)

    def notes(**values: Any) -> list[str]:
        lines: list[str] = []
        job = job_of({"model": MODEL, "data": DATA, "method": "easier", "device": "cpu"}, values)
        run_job(job, tmp_path, Listener(), say=lines.append)
        return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]

    return notes


def test_what_a_data_factory_does_not_read_is_noted(said: Said) -> None:
    assert said() == []
    assert said(batch_size=32, skip_broken=True) == [
        f"{name} does not apply to the data factory {DATA}: its loaders decide"
        for name in ("batch_size", "skip_broken")
    ]
    assert said(data="digits", batch_size=32) == []


def test_few_validation_samples_are_noted_where_one_decides(said: Said) -> None:
    few = (
        "with 150 validation samples one is 0.67 points, more than the 0.5 of --max-drop: give "
        "more of them"
    )
    assert said(max_drop=0.5) == [few]
    assert said(max_drop=0.7) == []
    assert said(max_drop=0.0) == []  # no number of samples is enough
    assert said(max_drop=0.5, task="multilabel") == []  # mAP moves by less than a sample


def data_of(classes: tuple[str, ...]) -> DataSet:
    batches = [(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())]
    return DataSet("own", batches, batches, classes=classes)


def test_a_last_layer_is_new_where_the_classes_are_known_to_be_others() -> None:
    ten, thousand, unknown = (data_of(tuple(map(str, range(n)))) for n in (10, 1000, 0))
    named = "torchvision:resnet18?weights=DEFAULT"
    assert new_last_layer(named, None, ten)
    assert not new_last_layer(named, None, thousand)
    assert not new_last_layer(named, None, unknown)
    assert new_last_layer(f"{named}&num_classes=10", None, unknown)
    assert not new_last_layer(f"{named}&num_classes=1000", None, ten)
    assert not new_last_layer(named, "own.pt", ten)
    assert not new_last_layer(MODEL, None, ten)


def test_timm_tells_how_many_classes_its_weights_are_for() -> None:
    try:
        compat.import_timm()
    except ShoalError as error:
        pytest.skip(str(error))
    ten, large, unknown = (data_of(tuple(map(str, range(n)))) for n in (10, 21_843, 0))
    assert [new_last_layer(TIMM, None, data) for data in (ten, large, unknown)] == [
        True,
        False,
        False,
    ]
    assert new_last_layer("timm:resnet18.a1_in1k", None, large)


CPU = torch.device("cpu")


@pytest.mark.parametrize(("channels", "used"), [(1, True), (3, False)])
def test_data_are_read_as_the_weights_ask_where_they_have_as_many_channels(
    monkeypatch: pytest.MonkeyPatch, channels: int, used: bool
) -> None:
    own = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    monkeypatch.setattr("shoal.search.job_model.normalisation_of", lambda spec: own)
    values = {"model": TIMM, "data": "digits", "pretrained": True}
    job, data = read_for(job_of(values, {}), CPU)
    assert (job.reading.mean, job.reading.std) == (((0.5,), (0.25,)) if used else (None, None))
    assert list(data.facts()["std"]) == [0.25 if used else 0.5]  # which are the digits' own
    given, _ = read_for(job_of(values, {"mean": [0.1], "std": [0.2]}), CPU)
    assert (given.reading.mean, given.reading.std) == ((0.1,), (0.2,))


def test_other_mistakes_of_reading_are_told_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    monkeypatch.setattr("shoal.search.job_model.normalisation_of", lambda spec: own)
    job = job_of({"model": TIMM, "data": "digits", "pretrained": True, "augment": "no"}, {})
    with pytest.raises(ShoalError, match="unknown augmentation"):
        read_for(job, CPU)
