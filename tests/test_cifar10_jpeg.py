"""CIFAR-10 as a folder of JPEG files: every image once, test images in two stratified halves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from scripts import script
from shoal.data import load_data

CLASSES = [f"class{i}" for i in range(10)]


def fake_cifar10(root: Path, *, train: bool, download: bool) -> SimpleNamespace:
    assert download
    labels = [i % 10 for i in range(40 if train else 60)]
    shades = np.asarray(labels, dtype=np.uint8)[:, None, None, None] * np.uint8(20)
    pixels = np.broadcast_to(shades, (len(labels), 32, 32, 3))
    return SimpleNamespace(data=pixels, targets=labels, classes=CLASSES)


def test_the_folder_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("benchmarks/cifar10_jpeg.py")
    torchvision = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=fake_cifar10))
    monkeypatch.setattr(module, "import_torchvision", lambda: torchvision)
    out = tmp_path / "c10split"
    module.main([str(out), "--data", str(tmp_path / "data")])
    files = {part: sorted((out / part).rglob("*.jpg")) for part in ("train", "val", "test")}
    assert {part: len(found) for part, found in files.items()} == {
        "train": 40, "val": 30, "test": 30,
    }  # fmt: skip
    for found in files.values():  # as many of each class, each with its own pixels
        assert {p.parent.name for p in found} == {*CLASSES}
        assert all(
            abs(int(np.asarray(Image.open(p)).mean()) - 20 * int(p.parent.name[5:])) <= 1
            for p in found
        )
    assert all(len([*(out / "val" / name).iterdir()]) == 3 for name in CLASSES)
    assert load_data(f"folder:{out}").describe().startswith(f"folder:{out}: 40 train, 30 val, 30")
