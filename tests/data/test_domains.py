from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from image_trees import sizes, truncate, write_image
from PIL import Image

from shoal.data import Augment, ImageFiles, load_data
from shoal.data.domains import pooled_split
from shoal.errors import ConfigError, DataError, NameNotFoundError

PACS = ("art_painting", "cartoon", "photo", "sketch")
VLCS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
CLASSES = ("dog", "elephant", "horse")


def write(folder, domains, count=5, suffix="jpg"):
    for domain, name, i in itertools.product(domains, CLASSES, range(count)):
        write_image(folder / domain / name / f"pic_{i:03}.{suffix}")


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "PACS", PACS)
    return tmp_path


def load(root, **options):
    small = {"batch_size": 8, "image_size": 16, "workers": 0}
    return load_data(f"pacs:{root}", **{**small, **options})


def paths_of(loader):
    return [str(path) for path in loader.source.paths]


@pytest.mark.parametrize(
    ("count", "lengths", "first", "total"),
    [
        (9991, (7992, 999, 1000), [8177, 6194, 4361, 3257, 5681], 5_080_553),  # PACS
        (10729, (8583, 1073, 1073), [9392, 6194, 4361, 3257, 5681], 5_839_096),  # VLCS
    ],
)
def test_the_pooled_splits_are_those_of_the_paper(count, lengths, first, total):
    split = pooled_split(count, 0)
    assert tuple(len(split[part]) for part in ("train", "val", "test")) == lengths
    assert split["test"][:5].tolist() == first
    assert int(split["test"].sum()) == total
    assert sorted(np.concatenate([*split.values()])) == [*range(count)]


def test_pooled_all_domains_are_in_all_parts_and_no_image_in_two(root):
    data = load(root, max_memory_gib=0)
    assert sizes(data) == [48, 6, 6]
    parts = [set(paths_of(part)) for part in (data.train, data.val, data.test)]
    assert len(set.union(*parts)) == 60
    assert data.classes == CLASSES
    assert data.sample_shape == (3, 16, 16)


def test_the_pool_is_in_the_order_of_the_papers_code(root):
    data = load(root, max_memory_gib=0)
    order = ["cartoon", "art_painting", "photo", "sketch"]
    pool = [
        root / "PACS" / domain / name / f"pic_{i:03}.jpg"
        for domain, name, i in itertools.product(order, CLASSES, range(5))
    ]
    test = {str(pool[i]) for i in pooled_split(60, 0)["test"]}
    assert set(paths_of(data.test)) == test


def test_nothing_but_training_is_augmented(root):
    data = load(root)
    colours = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.4}
    assert data.train.augment == Augment(flip=True, crop=1, **colours)
    assert data.train.source.frame.cut.area == (0.8, 1.0)
    assert data.val.augment == data.test.augment == Augment()
    assert load(root, augment="none").train.augment == Augment()


def test_whole_images_are_squeezed_to_validate(root):
    data = load(root, max_memory_gib=0, mean=(0, 0, 0), std=(1, 1, 1))
    images, _ = next(iter(data.val))
    wanted = Image.open(paths_of(data.val)[0]).resize((16, 16), Image.Resampling.BILINEAR)
    pixels = (images[0] * 255).permute(1, 2, 0).round().to(torch.uint8)
    assert np.array_equal(pixels.numpy(), np.asarray(wanted))


def test_training_images_are_cut_anew_however_little_memory_they_take(root):
    data = load(root)
    assert isinstance(data.train.source, ImageFiles)
    assert not isinstance(data.val.source, ImageFiles)
    data.train.set_epoch(0)
    first = torch.cat([x for x, _ in data.train])
    again = torch.cat([x for x, _ in data.train])
    data.train.set_epoch(1)
    later = torch.cat([x for x, _ in data.train])
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_a_domain_is_left_out_of_everything_but_the_test(root):
    data = load(f"{root}?leave_out=sketch", max_memory_gib=0)
    assert sizes(data) == [36, 9, 15]
    assert all("/sketch/" in path for path in paths_of(data.test))
    assert not any("/sketch/" in path for path in paths_of(data.train) + paths_of(data.val))
    val = [(path.split("/")[-3], path.split("/")[-2]) for path in paths_of(data.val)]
    assert sorted(val) == sorted(itertools.product(PACS[:3], CLASSES))  # a fifth of each
    colours = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.3, "grey": 0.1}
    assert data.train.augment == Augment(flip=True, crop=1, **colours)
    assert data.train.source.frame.cut.area == (0.7, 1.0)


def test_the_number_of_samples_may_be_limited(root):
    assert sizes(load(root, train_samples=9, val_samples=3)) == [9, 3, 6]
    with pytest.raises(DataError, match=r"fewer than the 3 classes"):
        load(root, train_samples=2)


def test_the_share_that_validates_is_for_a_domain_left_out(root):
    with pytest.raises(ConfigError, match=r"pooled domains, which are split 80, 10 and 10 %"):
        load(root, val_fraction=0.4)
    assert sizes(load(f"{root}?leave_out=sketch", val_fraction=0.4)) == [27, 18, 15]


def test_vlcs_has_its_own_domains(tmp_path):
    write(tmp_path, VLCS)
    data = load_data(f"vlcs:{tmp_path}?leave_out=SUN09", image_size=16, max_memory_gib=0)
    assert sizes(data) == [36, 9, 15]
    with pytest.raises(NameNotFoundError, match=r"domain of vlcs 'sun09': choose from: VOC2007"):
        load_data(f"vlcs:{tmp_path}?leave_out=sun09")


def one_line(message, spec, error=DataError):
    with pytest.raises(error, match=message) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)


def test_what_is_missing_and_where_it_belongs_is_one_line(tmp_path):
    one_line(
        f"'{tmp_path}' has no folder 'PACS': get PACS.zip .* so that '{tmp_path}/PACS' is there",
        f"pacs:{tmp_path}",
    )
    one_line("the folder '/no/such' does not exist: get VLCS.tar.gz", "vlcs:/no/such")
    (tmp_path / "PACS" / "photo").mkdir(parents=True)
    one_line(f"'{tmp_path}/PACS' has no folder 'cartoon': get PACS.zip", f"pacs:{tmp_path}")


def test_other_layouts_are_named(tmp_path):
    write(tmp_path / "kfold", PACS, count=1)
    one_line("has 'kfold': that is what PACS.zip unpacks to; rename it", f"pacs:{tmp_path}")
    write(tmp_path / "VLCS" / "CALTECH", ("train", "crossval", "test"), count=1)
    one_line("has 'CALTECH': that is JigenDG's layout", f"vlcs:{tmp_path}")


def test_domains_need_the_same_classes(root):
    (root / "PACS" / "photo" / "cat").mkdir()
    one_line("class 'cat' is in photo and not in cartoon", f"pacs:{root}")


def test_each_domain_has_images_of_each_class(root):
    folder = next(path for path in root.rglob("sketch") if path.is_dir())
    name = sorted(path.name for path in folder.iterdir())[0]
    for path in (folder / name).iterdir():
        path.unlink()
    one_line(f"class '{name}' has no image in sketch", f"pacs:{root}")
    shutil.rmtree(folder)
    folder.write_text("")
    one_line("has no folder 'sketch'", f"pacs:{root}")


def test_options_and_folders_that_are_not_known(root):
    one_line(
        "does not take these options: unknown option 'leaveout'",
        f"pacs:{root}?leaveout=a",
        Exception,
    )
    one_line("needs its folder: write 'pacs:FOLDER'", "pacs", Exception)


def test_grey_images_become_rgb_and_a_truncated_file_is_named(root):
    for path in (root / "PACS" / "sketch" / "dog").iterdir():
        write_image(path, mode="L")
    assert load(root).sample_shape == (3, 16, 16)
    broken = root / "PACS" / "photo" / "horse" / "pic_003.jpg"
    truncate(broken)
    with pytest.raises(DataError, match=r"pic_003.jpg' .*truncated"):
        [*load(root).train, *load(root).test]
    data = load(root, skip_broken=True)
    assert sum(sizes(data)) == 59
    assert any("pic_003.jpg" in note for note in data.notes)


@pytest.mark.slow
def test_nine_tenths_of_the_real_pacs(pacs_jpeg):
    data = load_data(f"pacs:{pacs_jpeg}", image_size=64, batch_size=64)
    assert sizes(data) == [7162, 895, 896]
    assert len(data.classes) == 7
    images, labels = next(iter(data.train))
    assert images.shape == (64, 3, 64, 64)
    assert len(labels.unique()) > 3
    left = load_data(f"pacs:{pacs_jpeg}?leave_out=sketch", image_size=64)
    assert left.test.num_samples == sum(1 for _ in (pacs_jpeg / "sketch").rglob("*.jpg"))
