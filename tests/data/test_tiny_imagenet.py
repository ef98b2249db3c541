from __future__ import annotations

import shutil

import pytest
import torch
from image_trees import sizes, write_image

from shoal.data import Augment, load_data
from shoal.errors import DataError

WNIDS = ("n01443537", "n01629819", "n01641577")  # sorted, as wnids.txt is not
TOP = "tiny-imagenet-200"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / TOP
    for wnid in WNIDS:
        for i in range(6):
            mode = "L" if i == 0 else "RGB"
            write_image(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", (64, 64), mode)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    lines = []
    for i in range(12):
        write_image(folder / "val" / "images" / f"val_{i}.JPEG", (64, 64))
        lines.append(f"val_{i}.JPEG\t{WNIDS[2 - i % 3]}\t0\t0\t62\t62")
        write_image(folder / "test" / "images" / f"test_{i}.JPEG", (64, 64))
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "wnids.txt").write_text("\n".join(reversed(WNIDS)))
    (folder / "words.txt").write_text("")
    return tmp_path


def load(root, **options):
    return load_data(f"tiny_imagenet:{root}", **{"batch_size": 8, "workers": 0, **options})


def test_every_second_labelled_image_of_each_class_is_for_testing(root):
    data = load(root, max_memory_gib=0)
    assert sizes(data) == [18, 6, 6]
    assert data.classes == WNIDS
    for part in (data.val, data.test):
        assert torch.bincount(part.labels).tolist() == [2, 2, 2]
    names = {
        part: [
            (path.name, int(label))
            for path, label in zip(loader.source.paths, loader.labels, strict=True)
        ]
        for part, loader in (("val", data.val), ("test", data.test))
    }
    # Class 2 has val_0, val_3, val_6 and val_9.
    assert {name for name, label in names["val"] if label == 2} == {"val_0.JPEG", "val_6.JPEG"}
    assert {name for name, label in names["test"] if label == 2} == {"val_3.JPEG", "val_9.JPEG"}


def test_images_are_64_pixels_and_only_mirrored(root):
    data = load(root / TOP)
    assert data.sample_shape == (3, 64, 64)
    assert data.train.augment == Augment(flip=True)
    assert data.val.augment == Augment()
    assert data.notes == ()


def test_a_copy_sorted_into_folders_is_read_as_it_is(root):
    for part in ("val", "test"):
        (root / TOP / part).rename(root / TOP / f"old-{part}")
        for wnid in WNIDS:
            for i in range(2):
                write_image(root / TOP / part / wnid / f"{part}_{wnid}_{i}.JPEG", (64, 64))
    assert sizes(load(root)) == [18, 6, 6]


def test_what_is_wrong_is_one_line(root, tmp_path_factory):
    with pytest.raises(DataError, match=r"get cs231n.stanford.edu/tiny-imagenet-200.zip"):
        load(tmp_path_factory.mktemp("empty"))
    labels = root / TOP / "val" / "val_annotations.txt"
    labels.write_text("val_0.JPEG\tn99\t0\t0\t1\t1\n")
    with pytest.raises(DataError, match=r"line 1 of .* names no class of train"):
        load(root)
    labels.unlink()
    with pytest.raises(DataError, match=r"neither 'val_annotations.txt' nor a folder for each"):
        load(root)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: "", "is empty"),
        (lambda text: "\n".join(text.splitlines()[:8]), "4 images in .* have no line"),
        (lambda text: text * 2, "'.*val_11?.JPEG' is listed twice"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_told(root, change, told):
    path = root / TOP / "val" / "val_annotations.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=told):
        load(root)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        load(root)


def test_a_class_without_training_images_is_told(root):
    shutil.rmtree(root / TOP / "train" / WNIDS[1] / "images")
    with pytest.raises(DataError, match=f"class '{WNIDS[1]}' has no image to train on"):
        load(root)
