from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from shoal.data import Augment, ImageFiles, ImageLoader
from shoal.data.images import Frame
from shoal.errors import ConfigError, DataError

N = 21


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream")
    rng = np.random.default_rng(0)
    for i in range(N):
        pixels = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


def make(paths, workers=0, **options):
    # The label of an image is its position.
    files = ImageFiles(paths, Frame(16, 18), workers)
    defaults = {"batch_size": 5, "mean": 0.5, "std": 0.5}
    return ImageLoader(files, torch.arange(len(paths)), **{**defaults, **options})


def training(paths, **options):
    augment = Augment(flip=True, crop=1)
    return make(paths, **{"augment": augment, "shuffle": True, "seed": 3, **options})


def read(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def assert_equal(left, right):
    for (x1, y1), (x2, y2) in zip(left, right, strict=True):
        assert torch.equal(x1, x2)
        assert torch.equal(y1, y2)


def test_types_and_shapes(paths):
    loader = make(paths)
    x, y = next(iter(loader))
    assert (tuple(x.shape), x.dtype, y.dtype) == ((5, 3, 16, 16), torch.float32, torch.int64)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert (len(loader), loader.num_samples, loader.sample_shape) == (5, N, (3, 16, 16))


def test_workers_and_restarts_change_nothing(paths):
    loader = training(paths)
    epochs = [read(loader, epoch) for epoch in range(3)]
    before = torch.get_rng_state()
    assert_equal(read(training(paths, workers=2), 2), epochs[2])
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_shards_partition_every_global_batch(paths):
    whole = read(training(paths), 1)
    shards = [read(training(paths).shard(rank, 2), 1) for rank in range(2)]
    assert [len(shard) for shard in shards] == [4, 4]  # the last batch is 1 image for 2
    for number in range(4):
        for part in range(2):
            joined = torch.cat([shard[number][part] for shard in shards])
            assert torch.equal(joined, whole[number][part])


def test_a_random_crop_belongs_to_the_sample_not_to_its_place_in_the_batch(paths):
    crop = Augment(crop=1)
    small, large = (
        {int(label): image for x, y in read(loader, 1) for image, label in zip(x, y, strict=True)}
        for loader in (training(paths, augment=crop), training(paths, augment=crop, batch_size=7))
    )
    assert all(torch.equal(small[i], large[i]) for i in range(N))


def test_plain_take_and_with_batch_size(paths):
    loader = training(paths, drop_last=True)
    assert_equal(read(loader.plain(), 3), read(make(paths)))
    assert len(loader.with_batch_size(7)) == 3
    taken = loader.take(4)
    assert taken.num_samples == 4
    positions = taken.labels.tolist()
    x = torch.cat([x for x, _ in taken.plain()])
    assert torch.equal(x, torch.cat([x for x, _ in make(paths)])[positions])


def test_a_file_that_a_worker_cannot_decode_is_named_in_one_line(paths, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    for workers in (0, 1):
        files = ImageFiles([*paths[:3], bad], Frame(8, 9), workers)
        loader = ImageLoader(files, [0, 0, 1, 1])
        with pytest.raises(DataError, match=r"bad\.png' \(it is not an image\)") as caught:
            list(loader)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_a_stream(paths):
    with pytest.raises(DataError, match="3 images and 2 labels"):
        ImageLoader(ImageFiles(paths[:3], Frame(16, 18)), [0, 1])
    with pytest.raises(ConfigError, match="mean has 2 numbers"):
        ImageLoader(ImageFiles(paths[:2], Frame(16, 18)), [0, 1], mean=(0.5, 0.5))
    with pytest.raises(ConfigError, match="size is 0"):
        Frame(0, 0)


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (40, 500), (224, 224), (256, 256)])
def test_the_centre_is_cut_as_torchvision_cuts_it(size):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from shoal.compat import import_torchvision

    transforms = import_torchvision().transforms
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
    np.testing.assert_array_equal(Frame(224, 256).centre(image), np.asarray(theirs))


def test_random_crops_cover_8_to_100_percent_and_fall_back_to_the_centre():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)
    image = Image.fromarray(np.repeat(np.tile(ramp, (64, 1))[..., None], 3, axis=2))
    frame = Frame(16, 18)
    widths = [int(np.ptp(frame.random(image, rng)[..., 0].astype(int))) for _ in range(200)]
    assert min(widths) < 100
    assert max(widths) > 220
    sliver = Image.new("RGB", (2, 400), (9, 9, 9))
    assert frame.random(sliver, rng).shape == (16, 16, 3)
