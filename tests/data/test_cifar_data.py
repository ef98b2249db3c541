from __future__ import annotations

import hashlib
import importlib.util
import pickle
import urllib.error

import numpy as np
import pytest
import torch

from shoal.compat import import_torchvision
from shoal.data import Augment, load_data
from shoal.data.split import random_split
from shoal.errors import ConfigError, DataError, OptionError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


@pytest.fixture
def datasets():
    import_torchvision()
    from torchvision import datasets

    return datasets


@pytest.fixture
def root(tmp_path, datasets, monkeypatch):
    """A CIFAR-10 of 5 × 40 training and 30 test images, in the official files' format."""
    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def put(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(count):
        labels = [i % 10 for i in range(count)]
        return {"data": rng.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": labels}

    train = [put(f"data_batch_{i}", batch(40)) for i in range(1, 6)]
    test = [put("test_batch", batch(30))]
    names = [f"class {i}" for i in range(10)]
    meta = put("batches.meta", {"label_names": names})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", test)
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]}
    )
    return tmp_path


def test_parts_shape_and_statistics(root):
    data = load_data(f"cifar10:{root}")
    sizes = [part.num_samples for part in (data.train, data.val, data.test)]
    assert sizes == [180, 20, 30]
    assert data.sample_shape == (3, 32, 32)
    assert data.classes == tuple(f"class {i}" for i in range(10))
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.train.augment == Augment(flip=True, crop=4)
    assert torch.bincount(data.val.labels).tolist() == [2] * 10


def test_the_validation_images_may_be_drawn_as_in_the_papers_code(root, datasets):
    data = load_data(f"cifar10:{root}?split=random", mean=(0, 0, 0), std=(1, 1, 1))
    assert [data.train.num_samples, data.val.num_samples] == [180, 20]
    val, train = random_split(200, 20, 0)
    for part, positions in ((data.val, val), (data.train, train)):
        given = datasets.CIFAR10(root, train=True).data[positions]
        wanted = {image.tobytes() for image in given.transpose(0, 3, 1, 2)}
        assert {(image * 255).round().byte().numpy().tobytes()
                for batch, _ in part.plain() for image in batch} == wanted  # fmt: skip
    with pytest.raises(OptionError, match="split is 'half': give one of stratified, random"):
        load_data(f"cifar10:{root}?split=half")


def test_the_official_test_set_is_whole_and_in_order(root, datasets):
    data = load_data(f"cifar10:{root}", mean=(0, 0, 0), std=(1, 1, 1))
    official = datasets.CIFAR10(root, train=False)
    got = torch.cat([x for x, _ in data.test])
    torch.testing.assert_close(got * 255, torch.from_numpy(official.data).permute(0, 3, 1, 2) * 1.0)
    assert data.test.labels.tolist() == official.targets


def test_the_folder_of_the_files_themselves_is_understood(root, datasets):
    assert load_data(f"cifar10:{root / datasets.CIFAR10.base_folder}").num_classes == 10


def test_limits_and_image_size(root):
    data = load_data(f"cifar10:{root}", train_samples=50, image_size=16, val_fraction=0.2)
    assert [data.train.num_samples, data.val.num_samples] == [50, 40]
    assert data.sample_shape == (3, 16, 16)
    assert data.train.augment == Augment(flip=True, crop=2)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_missing_files_say_what_to_do(kind, tmp_path):
    with pytest.raises(
        DataError, match=r"right folder, or get https?://.*tar\.gz .*download=True"
    ) as caught:
        load_data(f"{kind}:{tmp_path}")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=f"write '{kind}:FOLDER'"):
        load_data(kind)


def test_a_failed_download_is_one_line(tmp_path, datasets, monkeypatch):
    def fail(self):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(DataError, match=r"cannot be downloaded .*no network"):
        load_data(f"cifar10:{tmp_path}", download=True)
