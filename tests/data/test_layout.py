from __future__ import annotations

import re

import pytest

from shoal.data.layout import read_layout
from shoal.errors import DataError


def make(root, *paths):
    """Make empty files, and folders where a path ends in a slash: nothing here is opened."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).mkdir(exist_ok=True) if path.endswith("/") else (root / path).touch()
    return root


def parts_of(root):
    """Return the files of each part and class, below `root`."""
    layout = read_layout(root)
    return {
        part: [
            (str(path.relative_to(root)), layout.classes[label])
            for path, label in zip(files.paths, files.labels, strict=True)
        ]
        for part, files in layout.parts.items()
    }


def refused(root, what):
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        read_layout(root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Valid", "VAL"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Test")])
def test_parts_are_known_by_their_usual_names(tmp_path, train, val, test):
    make(tmp_path, *(f"{p}/{c}/1.png" for p in (train, val, test) for c in ("x", "y")))
    named = {"train": train, "val": val, "test": test}
    assert parts_of(tmp_path) == {
        part: [(f"{name}/{c}/1.png", c) for c in ("x", "y")] for part, name in named.items()
    }
    layout = read_layout(tmp_path)
    assert (layout.flat, layout.classes, layout.notes) == (False, ["x", "y"], [])


def test_train_and_test_without_val(tmp_path):
    make(tmp_path, *(f"{p}/{c}/1.png" for p in ("training", "testing") for c in "xy"))
    assert list(parts_of(tmp_path)) == ["train", "test"]


def test_two_folders_of_one_part_are_refused(tmp_path):
    make(tmp_path, *(f"{p}/{c}/1.png" for p in ("train", "val", "dev") for c in "xy"))
    refused(tmp_path, "two folders of val images, 'dev' and 'val': rename or remove one")


def test_a_class_may_be_called_train(tmp_path):
    make(tmp_path, "bus/1.png", "train/1.png")
    layout = read_layout(tmp_path)
    assert (layout.flat, layout.classes) == (True, ["bus", "train"])


def test_what_looks_like_parts_is_not_taken_for_classes(tmp_path):
    make(tmp_path, "seg_train/x/1.png", "seg_test/x/1.png")
    refused(tmp_path, "parts and not like classes ('seg_train', 'seg_test'): name them train")


def test_parts_inside_of_classes(tmp_path):
    make(tmp_path, *(f"{c}/{p}/1.png" for p in ("train", "test") for c in "xy"))
    refused(tmp_path, "has its parts inside the classes ('x/test'): put the images into train")


def test_a_folder_around_the_folder_is_named(tmp_path):
    make(tmp_path, *(f"photos/{p}/{c}/1.png" for p in ("train", "test") for c in "xy"))
    refused(
        tmp_path,
        f"only the class 'photos': a classifier needs at least two folders, or give "
        f"'{tmp_path / 'photos'}'",
    )


@pytest.mark.parametrize(
    "suffix", ["gif", "jfif", "jpe", "pgm", "pbm", "pnm", "tif", "tiff", "webp", "JPG"]
)
def test_images_by_their_suffixes(tmp_path, suffix):
    make(tmp_path, f"train/x/1.{suffix}", f"train/y/1.{suffix}")
    assert len(read_layout(tmp_path).parts["train"].paths) == 2


def test_what_is_not_read_is_counted_and_named(tmp_path):
    make(tmp_path, *(f"train/{c}/1.png" for c in "xy"), "train/x/2.heic", "train/y/3.heic")
    make(tmp_path, "train/y/README", "train/0.png", "extra/x/1.png", "1.png", "data.yaml")
    make(tmp_path, ".git/x/1.png", "__MACOSX/x/1.png", "train/x/.DS_Store", "train/.keep")
    unread, loose, others, top = read_layout(tmp_path).notes
    assert unread == (
        "3 train files are not read: 2 .heic, 1 without a suffix "
        f"(first '{tmp_path}/train/x/2.heic')"
    )
    assert loose == (
        f"1 file lies in no class of '{tmp_path}/train' and is not read ('{tmp_path}/train/0.png')"
    )
    assert others.startswith("folders that are no part of the data are not read: 'extra'")
    assert top.startswith(f"1 file lies in no class of '{tmp_path}'")


def test_a_folder_inside_a_class_counts_as_the_class(tmp_path):
    make(tmp_path, "train/x/1.png", "train/x/more/deep/2.png", "train/y/1.png")
    assert parts_of(tmp_path)["train"][1] == ("train/x/more/deep/2.png", "x")
    assert read_layout(tmp_path).notes == [
        "1 train image lies in folders inside a class and count as its own "
        f"('{tmp_path}/train/x/more/deep/2.png')"
    ]


def test_links_are_followed_and_circles_are_not(tmp_path):
    store = make(tmp_path / "store", "a/1.png", "a/b/2.png", "3.png")
    root = make(tmp_path / "data", "train/x/1.png", "val/x/", "val/y/1.png")
    (root / "train" / "y").symlink_to(store / "a")
    (root / "train" / "x" / "more").symlink_to(store / "a" / "b")
    (root / "train" / "x" / "round").symlink_to(root / "train" / "x")
    (root / "val" / "x" / "3.png").symlink_to(store / "3.png")
    found = parts_of(root)
    assert found["train"] == [
        ("train/x/1.png", "x"),
        ("train/x/more/2.png", "x"),
        ("train/y/1.png", "y"),
        ("train/y/b/2.png", "y"),
    ]
    assert found["val"] == [("val/x/3.png", "x"), ("val/y/1.png", "y")]


def test_a_class_that_is_empty_in_one_part(tmp_path):
    make(tmp_path, *(f"{p}/{c}/1.png" for p in ("train", "val") for c in "xy"))
    make(tmp_path, "test/x/1.png", "test/y/")
    assert read_layout(tmp_path).notes == ["1 class has no test image: 'y'"]
    (tmp_path / "train" / "x" / "1.png").unlink()
    refused(tmp_path, "class 'x' has no image to train on")


def test_images_of_unknown_kinds_alone(tmp_path):
    make(tmp_path, "train/x/1.heic", "train/y/1.heic")
    refused(tmp_path, "and it has 2 .heic")
