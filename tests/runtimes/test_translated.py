"""Networks in the form of ONNX: translated once, and anew whenever they compute something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.network import Network
from shoal.network.saving import content_hash
from shoal.runtimes import translated
from shoal.runtimes.translated import onnx_bytes

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def small(stride: int = 1) -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, stride=stride), nn.ReLU(), nn.Conv2d(2, 2, 1))
    return shoal.capture(model.eval(), torch.randn(2, 1, 8, 8))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that were translated; nothing is remembered from before."""
    monkeypatch.setattr(translated, "_remembered", type(translated._remembered)())
    found: list[Any] = []
    translate = translated.onnx_model

    def noted(*args: Any) -> Any:
        found.append(translate(*args))
        return found[-1]

    monkeypatch.setattr(translated, "onnx_model", noted)
    return found


def images(batch: int, size: int = 8) -> Tensor:
    return torch.randn(batch, 1, size, size)


def test_what_is_computed_decides_the_hash(tmp_path: Path) -> None:
    network = small()
    copy = network.copy()
    copy.meta["classes"] = ["a", "b"]  # does not decide it
    loaded = shoal.load(shoal.save(network, tmp_path / "net"))
    assert content_hash(copy) == content_hash(loaded) == content_hash(network)
    assert content_hash(small(stride=2)) != content_hash(network)
    shoal.linearize_(copy, ["1"], how="identity")
    assert content_hash(copy) != content_hash(network)
    next(loaded.parameters()).data[0, 0, 0, 0] += 1  # which changes no version counter
    assert content_hash(loaded) != content_hash(network)


def test_runtimes_share_one_translation(made: list[Any]) -> None:
    network = small()
    for name in {"onnxruntime", "openvino"} & set(shoal.runtimes.installed()):
        runner = shoal.runtimes.find_runtime(name).make(network.copy(), images(3), check=True)
        x = images(5)
        assert torch.allclose(runner(x), network(x), atol=1e-5)
    assert len(made) == 1


def test_a_network_that_changed_is_translated_anew(made: list[Any]) -> None:
    network = small()
    first = onnx_bytes(network, images(2))
    assert onnx_bytes(network, images(7)) == first
    assert len(made) == 1
    with torch.no_grad():
        next(network.parameters()).data.mul_(2)
    assert onnx_bytes(network, images(2)) != first
    assert onnx_bytes(network.copy().double(), images(2).double()) != first
    assert len(made) == 3


def test_what_is_remembered_is_bounded(made: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    network, other = small(), small(stride=2)
    size = len(onnx_bytes(network, images(2)))
    monkeypatch.setattr(translated, "_MOST_BYTES", size + 100)
    onnx_bytes(other, images(2))  # drives the first out
    onnx_bytes(other, images(2))
    assert len(made) == 2
    onnx_bytes(network, images(2))
    assert len(made) == 3
    monkeypatch.setattr(translated, "_MOST_BYTES", 10)
    onnx_bytes(network, images(2))
    onnx_bytes(network, images(2))
    assert len(made) == 4  # what was there before the limit is given once more
    assert not translated._remembered


def test_the_file_tells_the_size_of_its_samples(tmp_path: Path) -> None:
    net = small()  # captured at 8×8, for any size
    net.meta["input_shape"] = [1, 8, 8]
    written = {}
    for name in ("a.onnx", "a.pt2"):
        shoal.export(net, tmp_path / name, torch.randn(2, 1, 16, 16))
    model = onnx.load(tmp_path / "a.onnx")
    written["onnx"] = {one.key: one.value for one in model.metadata_props}["shoal.input_shape"]
    extra = {"shoal.json": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=extra)
    written["pt2"] = json.dumps(json.loads(extra["shoal.json"])["input_shape"])
    assert written == {"onnx": "[1, 16, 16]", "pt2": "[1, 16, 16]"}
