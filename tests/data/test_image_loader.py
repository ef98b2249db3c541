from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from shoal.data import Augment, ImageLoader
from shoal.errors import ConfigError, DataError

N, CLASSES = 50, 5
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (N, 3, 8, 6), dtype=torch.uint8, generator=GENERATOR)
LABELS = torch.arange(N) % CLASSES
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# The label of an image in these loaders is its position.
POSITIONS = torch.arange(N)
AUGMENT = Augment(flip=True, crop=1, brightness=0.2)


def make(labels=POSITIONS, **options):
    return ImageLoader(IMAGES, labels, **{"batch_size": 8, "mean": MEAN, "std": STD, **options})


def training(**options):
    return make(**{"augment": AUGMENT, "shuffle": True, "seed": 3, **options})


def read(loader, epoch=0):
    loader.set_epoch(epoch)
    return [(x.clone(), y.clone()) for x, y in loader]


def labels_of(batches):
    return torch.cat([y for _, y in batches]).tolist()


def assert_equal(left, right):
    assert len(left) == len(right)
    for (x1, y1), (x2, y2) in zip(left, right, strict=True):
        assert torch.equal(x1, x2)
        assert torch.equal(y1, y2)


def test_values_are_normalised_as_numpy_does_it():
    expected = (IMAGES.numpy() / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    got = torch.cat([x for x, _ in make()]).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_types_and_shapes():
    loader = make(LABELS)
    x, y = next(iter(loader))
    assert (x.dtype, tuple(x.shape)) == (torch.float32, (8, 3, 8, 6))
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == torch.int64
    assert (loader.num_samples, loader.num_classes, loader.sample_shape) == (50, 5, (3, 8, 6))
    assert torch.equal(loader.labels, LABELS)


def test_grey_images_and_one_mean_for_all_channels():
    grey = ImageLoader(IMAGES[:, :1], LABELS, batch_size=8, mean=0.5, std=0.5)
    x, _ = next(iter(grey))
    assert x.shape == (8, 1, 8, 6)
    torch.testing.assert_close(x, IMAGES[:8, :1] / 127.5 - 1)


def test_length_is_the_number_of_batches():
    for options, count in (({}, 7), ({"drop_last": True}, 6), ({"batch_size": 100}, 1)):
        loader = make(**options)
        assert len(loader) == len(list(loader)) == count


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    loader = training()
    orders = [labels_of(read(loader, epoch)) for epoch in range(3)]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_a_restart_at_an_epoch_equals_the_uninterrupted_run():
    loader = training()
    uninterrupted = [read(loader, epoch) for epoch in range(4)]
    torch.manual_seed(99)  # the global state plays no part
    np.random.seed(99)
    for epoch in (3, 1):
        assert_equal(read(training(), epoch), uninterrupted[epoch])


def test_seeds_differ_and_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert labels_of(read(training(seed=1))) != labels_of(read(training(seed=2)))
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_never_changes_labels():
    augmented, bare = training(), training(augment=None)
    for epoch in range(2):
        assert labels_of(read(augmented, epoch)) == labels_of(read(bare, epoch))


def test_plain_is_in_stored_order_without_any_randomness_in_every_epoch():
    loader = training(drop_last=True)
    loader.set_epoch(5)
    plain = loader.plain()
    assert_equal(read(plain, 0), read(make()))
    assert_equal(read(plain, 7), read(make()))
    assert labels_of(read(loader.shard(1, 2).plain())) == list(range(N))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shards_partition_every_global_batch(world):
    whole = read(training(), epoch=2)
    shards = [read(training().shard(rank, world), epoch=2) for rank in range(world)]
    lengths = {len(shard) for shard in shards}
    # The last global batch has 2 images: more processes than that go without it.
    assert lengths == {7 if world <= 2 else 6}
    for number, (x, y) in enumerate(whole[: lengths.pop()]):
        assert torch.equal(torch.cat([shard[number][1] for shard in shards]), y)
        torch.testing.assert_close(
            torch.cat([shard[number][0] for shard in shards]), x, rtol=0, atol=1e-6
        )
        assert all(len(shard[number][1]) > 0 for shard in shards)


def test_length_of_a_shard_is_what_it_yields():
    for world in (1, 2, 3):
        shard = training().shard(0, world)
        assert len(shard) == len(list(shard))


def test_shards_that_cannot_be():
    with pytest.raises(ConfigError, match="rank is 2 of 2"):
        make().shard(2, 2)
    with pytest.raises(ConfigError, match="batch_size of at least 9"):
        make().shard(0, 9)
    with pytest.raises(DataError, match="50 samples cannot be shared by 60"):
        make(batch_size=64).shard(0, 60)


def test_take_is_stratified_seeded_and_of_the_same_images():
    taken = make(LABELS).take(20)
    assert torch.bincount(taken.labels).tolist() == [4] * 5
    positions = labels_of(read(make().take(20)))
    assert labels_of(read(make().take(20))) == positions
    torch.testing.assert_close(
        torch.cat([x for x, _ in make().take(20)]), torch.cat([x for x, _ in make()])[positions]
    )
    assert make().take(500).num_samples == N


def test_with_batch_size_and_to_leave_the_original_alone():
    loader = training()
    assert len(loader.with_batch_size(25)) == 2
    assert loader.to("cpu").device == torch.device("cpu")
    meta = loader.to("meta")
    assert meta.device.type == "meta"
    assert loader.batch_size == 8
    assert loader.device.type == "cpu"
    with pytest.raises(ConfigError, match="batch_size is 0"):
        loader.with_batch_size(0)


def test_channels_last_images_are_not_copied():
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    loader = ImageLoader(images, LABELS)
    assert loader.source.pixels.data_ptr() == images.data_ptr()


@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "message"),
    [
        (IMAGES.float(), LABELS, {}, DataError, "torch.float32"),
        (IMAGES[0], LABELS, {}, DataError, r"give uint8 \[N, C, H, W\]"),
        (IMAGES[:9], LABELS, {}, DataError, "9 images and 50 labels"),
        (IMAGES[:0], LABELS[:0], {}, DataError, "no sample"),
        (IMAGES, LABELS - 1, {}, DataError, "label -1 is out of range"),
        (IMAGES, LABELS, {"num_classes": 4}, DataError, "label 4 is out of range.* 0 to 3"),
        (IMAGES, LABELS.float(), {}, DataError, "one class number"),
        (IMAGES, LABELS, {"mean": (0.5, 0.5)}, ConfigError, "mean has 2 numbers .* 3 channels"),
        (IMAGES, LABELS, {"std": (0.5, 0.0, 1.0)}, ConfigError, "above 0"),
        (IMAGES, LABELS, {"batch_size": 0}, ConfigError, "batch_size is 0"),
        (IMAGES, LABELS, {"seed": -1}, ConfigError, "seed is -1"),
    ],
)
def test_what_cannot_be_a_loader(images, labels, options, error, message):
    with pytest.raises(error, match=message):
        ImageLoader(images, labels, **options)


def test_negative_epoch_is_refused():
    with pytest.raises(ConfigError, match="epochs count from 0"):
        make().set_epoch(-1)


def test_ten_thousand_augmented_images_take_well_below_a_second():
    images = torch.randint(0, 256, (10_000, 3, 32, 32), dtype=torch.uint8, generator=GENERATOR)
    loader = ImageLoader(
        images, torch.zeros(10_000, dtype=torch.int64), augment="flip_crop", shuffle=True
    )
    seconds = []
    for _ in range(3):
        start = time.process_time()
        for _ in loader:
            pass
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1.0
