from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from shoal.data import Augment, ImageFiles, load_data
from shoal.errors import ConfigError, DataError

CLASSES = ("ant", "bee", "cat")


def write(folder, count, *, size=(8, 8), suffix="png", classes=CLASSES, start=0):
    """Write `count` images of each class; no two of all images are the same."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + count):
            rng = np.random.default_rng([label, i, len(folder.name)])
            pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.{suffix}")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    write(folder / "train", 20)
    return folder


def images_of(loader):
    return {x.numpy().tobytes() for batch, _ in loader.plain() for x in batch}


def load(root, **options):
    return load_data(f"folder:{root}", **{"batch_size": 8, **options})


def one_line(error, message, root, **options):
    with pytest.raises(error, match=message) as caught:
        load(root, **options)
    assert "\n" not in str(caught.value)


def test_validation_is_split_off_before_training_images_are_chosen(root):
    whole, limited = load(root), load(root, train_samples=9)
    assert [whole.train.num_samples, whole.val.num_samples, whole.test] == [54, 6, None]
    assert torch.bincount(whole.val.labels).tolist() == [2, 2, 2]
    assert torch.bincount(limited.train.labels).tolist() == [3, 3, 3]
    assert images_of(limited.val) == images_of(whole.val)
    assert images_of(limited.train) < images_of(whole.train)
    assert not images_of(whole.train) & images_of(whole.val)
    assert len(images_of(whole.train) | images_of(whole.val)) == 60


def test_only_training_is_augmented_and_shuffled(root):
    data = load(root)
    assert data.train.augment == Augment(flip=True, crop=1)
    assert data.train.shuffle
    assert data.val.augment == Augment()
    assert not data.val.shuffle
    assert load(root, augment="none").train.augment == Augment()


def test_stored_order_mixes_the_classes(root):
    assert set(load(root).train.labels[:12].tolist()) == {0, 1, 2}


def test_val_and_test_folders_are_used_whole(root):
    write(root / "val", 5)
    data = load(root)
    assert [data.train.num_samples, data.val.num_samples, data.test] == [60, 15, None]
    write(root / "test", 4)
    data = load(root, val_samples=6)
    sizes = [part.num_samples for part in (data.train, data.val, data.test)]
    assert sizes == [60, 6, 12]
    assert data.classes == CLASSES


def test_test_without_val_leaves_the_test_set_alone(root):
    write(root / "test", 4)
    data = load(root, val_fraction=0.2)
    sizes = [part.num_samples for part in (data.train, data.val, data.test)]
    assert sizes == [48, 12, 12]


def test_class_folders_without_train_are_split_three_ways(root):
    data = load(root / "train")
    sizes = [part.num_samples for part in (data.train, data.val, data.test)]
    assert sizes == [42, 9, 9]
    sets = [images_of(part) for part in (data.train, data.val, data.test)]
    assert len(set.union(*sets)) == 60


def test_pixels_are_those_of_the_files_and_labels_those_of_the_folders(tmp_path):
    for label, name in enumerate(CLASSES):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (label * 50, i, 200)).save(folder / f"{i}.png")
    data = load(tmp_path, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for x, y in data.train.plain():
        torch.testing.assert_close(x[:, 0, 0, 0] * 255, y * 50.0)
        torch.testing.assert_close(x[:, 2].amin() * 255, torch.tensor(200.0))


def test_default_statistics_are_those_of_imagenet(root):
    data = load(root)
    assert data.mean == (0.485, 0.456, 0.406)
    assert data.std == (0.229, 0.224, 0.225)


def test_image_size_is_that_of_small_images_else_224(root, tmp_path):
    assert load(root).sample_shape == (3, 8, 8)
    assert load(root, image_size=12).sample_shape == (3, 12, 12)
    write(tmp_path / "large" / "train", 4, size=(70, 90))
    assert load(tmp_path / "large").sample_shape == (3, 224, 224)
    write(tmp_path / "mixed" / "train", 4)
    write(tmp_path / "mixed" / "train", 4, size=(9, 8), start=10)
    assert load(tmp_path / "mixed").sample_shape == (3, 224, 224)


def test_only_images_count_whatever_the_case_of_their_suffix(root):
    for name in (".hidden.png", "notes.txt", "Thumbs.db"):
        (root / "train" / "ant" / name).write_text("no image")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "ant" / "000.png").rename(root / "train" / "ant" / "000.PNG")
    data = load(root)
    assert data.classes == CLASSES
    assert data.train.num_samples + data.val.num_samples == 60


def test_grey_palette_and_sixteen_bit_images_become_rgb(tmp_path):
    for name in ("dark", "light"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        value = 40 if name == "dark" else 200
        grey = Image.new("L", (8, 8), value)
        grey.save(folder / "grey.png")
        grey.convert("P").save(folder / "palette.png", transparency=bytes(range(256)))
        grey.convert("RGBA").save(folder / "alpha.png")
        deep = np.full((8, 8), value * 257, dtype=np.uint16)
        Image.fromarray(deep).save(folder / "deep.png")
        grey.save(folder / "grey.jpg")
    data = load(tmp_path, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for part in (data.train, data.val):
        for x, y in part.plain():
            expected = torch.where(y == 0, 40.0, 200.0)[:, None, None, None].expand_as(x)
            torch.testing.assert_close(x * 255, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
@pytest.mark.parametrize("max_memory_gib", [4.0, 0.0])
def test_a_damaged_file_is_named_and_can_be_skipped(root, damage, max_memory_gib):
    bad = root / "train" / "bee" / "007.png"
    whole = bad.read_bytes()
    bad.write_bytes({"text": b"not an image", "empty": b"", "truncated": whole[:100]}[damage])
    options = {"max_memory_gib": max_memory_gib, "workers": 0}

    def read_all(**more):
        data = load(root, **options, **more)
        images_of(data.train), images_of(data.val)
        return data

    with pytest.raises(DataError, match=re.escape(str(bad))) as caught:
        read_all()
    assert "skip_broken=True" in str(caught.value)
    assert "\n" not in str(caught.value)
    data = read_all(skip_broken=True)
    assert data.train.num_samples + data.val.num_samples == 59
    assert len(data.notes) == 1
    assert "1 " in data.notes[0]
    assert str(bad) in data.notes[0]


def test_an_image_that_is_too_large_is_named_and_can_be_skipped(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # refused above 10,000
    Image.new("L", (90, 100)).save(root / "train" / "ant" / "large.png")
    load(root, image_size=8)  # no warning either
    huge = root / "train" / "bee" / "huge.gif"
    Image.new("1", (101, 100)).save(huge)
    one_line(DataError, f"'{huge}' .it has more than 0 megapixels", root, image_size=8)
    notes = load(root, image_size=8, skip_broken=True).notes
    assert notes == (f"1 train file could not be decoded and was skipped: {huge}",)
    stream = load(root, image_size=8, max_memory_gib=0.0, workers=0)
    with pytest.raises(DataError, match="more than 0 megapixels"):
        images_of(stream.train), images_of(stream.val)


def test_a_class_of_broken_files_is_not_skipped_silently(root):
    for path in (root / "train" / "bee").iterdir():
        path.write_text("x")
    one_line(DataError, "class 'bee' has no image", root, skip_broken=True)


@pytest.mark.parametrize("max_memory_gib", [4.0, 0.0])
def test_a_class_that_few_samples_leave_out_is_no_broken_one(root, max_memory_gib):
    write(root / "val", 2)
    for path in sorted((root / "train" / "bee").iterdir())[1:]:
        path.unlink()
    for path in sorted((root / "train" / "ant").iterdir())[::2]:
        path.write_text("x")
    options = {"train_samples": 8, "max_memory_gib": max_memory_gib, "workers": 0}
    data = load(root, skip_broken=True, **options)
    left, skipped = data.notes
    assert left.startswith("train_samples leaves 1 of 3 classes without an image")
    assert "could not be decoded" in skipped
    assert 4 < data.train.num_samples < 8


def test_a_missing_folder_gets_the_nearest_name(root):
    one_line(DataError, f"does not exist: did you mean '{root}'", root.parent / "dat")
    one_line(DataError, "does not exist", root.parent / "zzz" / "deep")
    one_line(DataError, "is not a folder", root / "train" / "ant" / "000.png")
    with pytest.raises(ConfigError, match="write 'folder:FOLDER'"):
        load_data("folder")


def test_a_folder_that_may_not_be_read(root, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    one_line(DataError, f"'{root}' cannot be read: change its permissions", root)


def test_folders_that_are_no_data_set(root, tmp_path):
    (tmp_path / "empty" / "train").mkdir(parents=True)
    one_line(DataError, "has no folder of a class", tmp_path / "empty")
    (tmp_path / "hollow" / "train" / "a").mkdir(parents=True)
    (tmp_path / "hollow" / "train" / "b").mkdir()
    one_line(DataError, "has no image in its class folders", tmp_path / "hollow")
    write(tmp_path / "single" / "train", 3, classes=["a"])
    one_line(DataError, "only the class 'a'", tmp_path / "single")
    write(tmp_path / "lonely" / "val", 3)
    one_line(DataError, "no folder 'train'", tmp_path / "lonely")
    (root / "train" / "dog").mkdir()
    one_line(DataError, "class 'dog' has no image", root)


def test_parts_with_other_classes_name_the_first_that_differs(root):
    write(root / "test", 2, classes=["ant", "bee", "cow"])
    one_line(DataError, "class 'cat' is in train and not in test", root)
    write(root / "test", 2)
    one_line(DataError, "class 'cow' is in test and not in train", root)


def test_too_few_images_of_a_class(root):
    write(root / "train", 1, classes=["dog"])
    one_line(DataError, "class 'dog' has only 1 image", root)
    write(root / "val", 1, classes=[*CLASSES, "dog"])
    assert load(root).num_classes == 4
    one_line(DataError, "fewer than the 4 classes", root, train_samples=3)


def test_memory_decides_how_images_are_read(root):
    assert not isinstance(load(root).train.source, ImageFiles)
    streamed = load(root, max_memory_gib=0.0)
    assert isinstance(streamed.train.source, ImageFiles)
    assert isinstance(streamed.val.source, ImageFiles)


@pytest.mark.parametrize(("size", "image_size"), [((8, 8), None), ((50, 30), 20)])
def test_a_stream_gives_the_images_that_memory_gives(tmp_path, size, image_size):
    write(tmp_path / "train", 6, size=size, suffix="jpg")
    memory = load(tmp_path, image_size=image_size)
    stream = load(tmp_path, image_size=image_size, max_memory_gib=0.0, workers=2)
    for part in ("train", "val"):
        left, right = (list(getattr(data, part).plain()) for data in (memory, stream))
        for (x1, y1), (x2, y2) in zip(left, right, strict=True):
            assert torch.equal(x1, x2)
            assert torch.equal(y1, y2)


@pytest.mark.parametrize("with_val", [False, True])
def test_a_class_that_few_training_samples_leave_out_is_told(tmp_path, with_val):
    """Of 30 of about 200 images, a class of 3 gets 0.44: none."""
    write(tmp_path / "train", 3)
    write(tmp_path / "train", 97, classes=CLASSES[:2], start=3)
    if with_val:
        write(tmp_path / "val", 2)
    told = "train_samples leaves 1 of 3 classes without an image to train on (such as 'cat')"
    data = load(tmp_path, train_samples=30)
    assert torch.bincount(data.train.labels, minlength=3).tolist() == [15, 15, 0]
    assert sum(told in note for note in data.notes) == 1
    assert not any("train_samples" in note for note in load(tmp_path).notes)
    assert not any("train_samples" in note for note in load(tmp_path, train_samples=150).notes)
