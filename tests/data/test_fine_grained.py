from __future__ import annotations

import numpy as np
import pytest
import torch
from image_trees import sizes, truncate, write_image

from shoal.data import Augment, load_data
from shoal.errors import ConfigError, DataError, OptionError

PARTS = ("train", "val", "test")


@pytest.fixture
def flowers(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    folder = tmp_path / "flowers-102"
    for number in range(1, 13):
        write_image(folder / "jpg" / f"image_{number:05}.jpg", (40, 30))
    savemat(folder / "imagelabels.mat", {"labels": np.arange(12)[None] % 3 + 1})  # from 1
    sets = {"trnid": [[4, 2, 3]], "valid": [[5, 6, 7, 1]], "tstid": [[8, 9, 10, 11, 12]]}
    savemat(folder / "setid.mat", {name: np.array(ids) for name, ids in sets.items()})
    return tmp_path


@pytest.fixture
def textures(tmp_path):
    folder = tmp_path / "dtd" / "dtd"
    names = [f"{c}/{c}_{i:04}.jpg" for c in ("banded", "woven") for i in range(6)]
    for name in names:
        write_image(folder / "images" / name, (40, 30))
    (folder / "labels").mkdir()
    for number in (1, 2):
        for at, part in enumerate(PARTS):
            chosen = names[(at + number) % 3 :: 3]
            (folder / "labels" / f"{part}{number}.txt").write_text("\n".join(chosen) + "\n")
    return tmp_path


@pytest.fixture
def aircraft(tmp_path):
    folder = tmp_path / "fgvc-aircraft-2013b" / "data"
    levels = {"variant": ["Boeing 707-320", "F/A-18"], "manufacturer": ["Boeing", "McDonnell"]}
    for level, classes in levels.items():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / f"{level}s.txt").write_text("\n".join(classes) + "\n")
        for at, part in enumerate(PARTS):
            lines = [f"{at}{i:06} {classes[i % 2]}" for i in range(4)]
            (folder / f"images_{level}_{part}.txt").write_text("\n".join(lines) + "\n")
    (folder / "families.txt").write_text("Boeing 707\nF/A-18\n")
    for at in range(3):
        for i in range(4):
            write_image(folder / "images" / f"{at}{i:06}.jpg", (60, 40))
    return tmp_path


def load(spec, **options):
    small = {"batch_size": 2, "image_size": 16, "workers": 0, "max_memory_gib": 0}
    return load_data(spec, **{**small, **options})


def labelled(loader):
    pairs = zip(loader.source.paths, loader.labels.tolist(), strict=True)
    return {path.name: label for path, label in pairs}


def test_flowers_have_the_official_parts_and_labels_from_0(flowers):
    data = load(f"flowers102:{flowers}")
    assert sizes(data) == [3, 4, 5]
    assert labelled(data.train) == {
        "image_00004.jpg": 0,
        "image_00002.jpg": 1,
        "image_00003.jpg": 2,
    }
    assert data.num_classes == 3
    frame = load(f"flowers102:{flowers}", image_size=None).train.source.frame
    assert (frame.size, frame.resize, frame.cut.rotation) == (224, 255, 30.0)


def test_flowers_and_textures_are_mixed_in_training_alone(flowers, textures):
    for spec in (f"flowers102:{flowers}", f"dtd:{textures}"):
        data = load(spec)
        assert data.train.augment.mix == 0.8
        _, target = next(iter(data.train))
        assert target.shape == (2, data.num_classes)
        assert torch.allclose(target.sum(1), torch.ones(2))
        assert (
            next(iter(data.val))[1].dtype == next(iter(data.train.plain()))[1].dtype == torch.int64
        )
        assert next(iter(load(f"{spec}?mix=0").train))[1].dtype == torch.int64


def test_textures_have_ten_partitions(textures):
    first, second = load(f"dtd:{textures}"), load(f"dtd:{textures}/dtd?partition=2")
    assert sizes(first) == [4, 4, 4]
    assert first.classes == ("banded", "woven")
    assert all(name.startswith(first.classes[c]) for name, c in labelled(first.train).items())
    assert labelled(second.train) == labelled(first.val)
    assert first.train.augment == Augment(flip=True, vertical_flip=True, crop=1, mix=0.8)
    with pytest.raises(OptionError, match=r"partition is 11"):
        load(f"dtd:{textures}?partition=11")


def test_names_of_aircraft_have_blanks_and_slashes(aircraft):
    data = load(f"aircraft:{aircraft}")
    assert sizes(data) == [4, 4, 4]
    assert data.classes == ("Boeing 707-320", "F/A-18")
    assert labelled(data.val) == {f"1{i:06}.jpg": i % 2 for i in range(4)}
    by = load(f"aircraft:{aircraft}/fgvc-aircraft-2013b?level=manufacturer")
    assert by.classes == ("Boeing", "McDonnell")


def test_aircraft_are_squeezed_and_a_square_is_cut_out_of_them(aircraft):
    data = load(f"aircraft:{aircraft}", image_size=None)
    frame = data.train.source.frame
    assert (frame.size, frame.resize, frame.squeeze, frame.cut.area) == (224, 512, True, None)
    assert data.train.augment == Augment(flip=True, crop=1)  # mirrored top to bottom in no code


def test_what_is_missing_is_one_line(tmp_path, flowers, textures, aircraft):
    empty = tmp_path / "empty"
    empty.mkdir()
    for spec, archive in (
        ("flowers102", "102flowers.tgz, imagelabels.mat and setid.mat"),
        ("dtd", "robots.ox.ac.uk/~vgg/data/dtd"),
        ("aircraft", "fgvc-aircraft-2013b.tar.gz"),
    ):
        with pytest.raises(DataError, match=rf"get .*{archive}.*download=True") as caught:
            load(f"{spec}:{empty}")
        assert "\n" not in str(caught.value)
    (flowers / "flowers-102" / "setid.mat").unlink()
    with pytest.raises(DataError, match=r"flowers-102' has no 'setid.mat'"):
        load(f"flowers102:{flowers}")
    with pytest.raises(ConfigError, match=r"unknown option 'part'"):
        load(f"dtd:{textures}?part=2")


def test_damaged_files_are_named(flowers, textures, aircraft):
    (flowers / "flowers-102" / "imagelabels.mat").write_bytes(b"no matrix")
    with pytest.raises(DataError, match=r"imagelabels.mat' cannot be read .*download it again"):
        load(f"flowers102:{flowers}")
    image = aircraft / "fgvc-aircraft-2013b" / "data" / "images" / "1000002.jpg"
    truncate(image)
    with pytest.raises(DataError, match=r"1000002.jpg' .*truncated"):
        [*load(f"aircraft:{aircraft}").val]
    image.unlink()
    with pytest.raises(DataError, match=r"the val image .*1000002.jpg' is missing"):
        load(f"aircraft:{aircraft}")
    (textures / "dtd" / "dtd" / "labels" / "val1.txt").write_text("velvet/velvet_0001.jpg\n")
    with pytest.raises(DataError, match=r"line 1 of .*val1.txt' names no known class .'velvet'"):
        load(f"dtd:{textures}")


def test_an_image_is_in_one_part_alone(textures):
    lists = next(textures.rglob("train1.txt")).parent
    (lists / "val1.txt").write_text((lists / "train1.txt").read_text())
    with pytest.raises(DataError, match="is listed twice, for train and val"):
        load(f"dtd:{textures}")
