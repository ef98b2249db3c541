from __future__ import annotations

import argparse
import collections
import datetime
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shoal.errors import CheckpointError
from shoal.models.weights_file import read_weights

WEIGHTS = {name: torch.full((2,), float(i)) for i, name in enumerate("abc")}
FIRST, SECOND = {"a": WEIGHTS["a"]}, {"b": WEIGHTS["b"], "c": WEIGHTS["c"]}


def write_shards(folder: Path, suffix: str = ".safetensors", second: object = SECOND) -> list[Path]:
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    paths = [folder / f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    for path, part in zip(paths, (FIRST, second), strict=True):
        save_file(part, path) if suffix == ".safetensors" else torch.save(part, path)
    return paths


def write_index(paths: list[Path], **changed: object) -> Path:
    stem = paths[0].name.split("-")[0]
    path = paths[0].with_name(f"{stem}{paths[0].suffix}.index.json")
    places = {"a": paths[0].name, "b": paths[1].name, "c": paths[1].name, **changed}
    path.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": places}))
    return path


def refused(path: Path, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[n], WEIGHTS[n]) for n in found)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_joined_whichever_is_named(suffix: str, tmp_path: Path):
    paths = write_shards(tmp_path, suffix)
    assert same(read_weights(tmp_path))
    index = write_index(paths)
    for path in (tmp_path, index, *paths):
        assert same(read_weights(path))


def test_an_index_says_which_tensor_to_take_from_which_file(tmp_path: Path):
    paths = write_shards(tmp_path, second={**SECOND, "a": torch.zeros(2) - 1, "d": torch.ones(1)})
    assert same(read_weights(write_index(paths)))
    refused(paths[0], "'a' is in .* and in another of its 2 files")


def test_tied_weights_may_be_in_two_shards(tmp_path: Path):
    assert same(read_weights(write_shards(tmp_path, second={**SECOND, **FIRST})[0]))


def test_a_shard_that_is_missing_or_lacks_a_tensor(tmp_path: Path):
    paths = write_shards(tmp_path)
    refused(write_index(paths, z=paths[0].name), "lacks 'z'")
    paths[1].unlink()
    refused(write_index(paths), "00002-of-00002.safetensors' is missing: .* 2 files")
    refused(paths[0], "00002-of-00002.safetensors' is missing: .* 2 files")


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/secret.bin", "a/b.bin", 3, "code.py"])
def test_an_index_names_files_beside_it_alone(name: object, tmp_path: Path):
    refused(write_index(write_shards(tmp_path), a=name), "whose files lie beside it")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 1}'])
def test_a_damaged_index(text: str, tmp_path: Path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    refused(path, "is damaged|has no 'weight_map'")


def test_folds_of_a_cross_validation_are_no_shards(tmp_path: Path):
    torch.save(WEIGHTS, tmp_path / "fold-1-of-5.pt")
    assert same(read_weights(tmp_path / "fold-1-of-5.pt"))


def test_a_folder_is_named_for_its_only_file(tmp_path: Path):
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert same(read_weights(tmp_path))
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "is a folder: name the file of weights .it holds model.safetensors, pytorch")


@pytest.mark.parametrize(
    "extra",
    [
        np.float64(91.5),
        np.float32(1),
        np.int64(3),
        np.bool_(True),
        np.arange(6.0).reshape(2, 3),
        argparse.Namespace(lr=0.1, arch="resnet18"),
        collections.Counter("ab"),
        collections.OrderedDict(a=1),
        datetime.datetime(2024, 1, 2, 3, 4),
        {1, 2},
    ],
)
def test_harmless_values_beside_the_weights(extra: object, tmp_path: Path):
    torch.save({"model": WEIGHTS, "extra": extra}, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert same(found["model"])
    if type(extra).__module__ != "numpy":  # of which nothing is made
        assert type(found["extra"]) is type(extra)


class Mark:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: np.array([m]), argparse.Namespace])
def test_code_is_not_run_within_harmless_values(wrap, tmp_path: Path):
    mark = Mark(tmp_path / "ran")
    inside = wrap(x=mark) if wrap is argparse.Namespace else wrap(mark)
    torch.save({"model": WEIGHTS, "extra": inside}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "holds pickled code")
    assert not (tmp_path / "ran").exists()
