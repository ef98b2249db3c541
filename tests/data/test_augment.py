from __future__ import annotations

import numpy as np
import pytest
import torch

from shoal.data.augment import PRESETS, Augment, resolve_augment
from shoal.errors import ConfigError, NameNotFoundError

COUNT = 64
IMAGES = torch.randint(
    1, 256, (COUNT, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def draw(augment):
    return augment.draw(COUNT, np.random.default_rng(0))


def test_no_augmentation_changes_nothing():
    assert Augment().apply(IMAGES, draw(Augment())) is IMAGES


def test_flip_gives_the_image_or_its_mirror_image():
    flipped = Augment(flip=True).apply(IMAGES, draw(Augment(flip=True)))
    same = (flipped == IMAGES).flatten(1).all(1)
    mirrored = (flipped == IMAGES.flip(2)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 16 < int(same.sum()) < 48


def test_vertical_flip_mirrors_top_and_bottom():
    augment = Augment(vertical_flip=True)
    flipped = augment.apply(IMAGES, draw(augment))
    same = (flipped == IMAGES).flatten(1).all(1)
    assert bool((same ^ (flipped == IMAGES.flip(1)).flatten(1).all(1)).all())


def test_crop_is_a_window_of_the_padded_image_and_reaches_every_offset():
    augment = Augment(crop=2)
    padded = np.pad(IMAGES.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for image, whole in zip(augment.apply(IMAGES, draw(augment)).numpy(), padded, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(whole[y : y + 9, x : x + 7], image)
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert {y for y, _ in offsets} == {x for _, x in offsets} == set(range(5))


def test_a_slice_of_the_numbers_gives_a_slice_of_the_images():
    augment = Augment(
        flip=True, crop=2, vertical_flip=True, rotation=20, brightness=0.3, contrast=0.3
    )
    numbers = draw(augment)
    whole = augment.apply(IMAGES, numbers)
    part = augment.apply(IMAGES[10:30], numbers[10:30])
    torch.testing.assert_close(part, whole[10:30], rtol=0, atol=1e-3)


def test_rotation_by_a_quarter_turn_is_exact():
    square = IMAGES[:, :7]
    numbers = np.zeros((COUNT, 7))  # the lowest number is the full angle to one side
    turned = Augment(rotation=90).apply(square, numbers)
    expected = torch.rot90(square.float(), 1, (1, 2))
    other = torch.rot90(square.float(), -1, (1, 2))
    error = min((turned - expected).abs().max(), (turned - other).abs().max())
    assert error < 1e-2


def test_rotation_does_not_distort_oblong_images():
    turned = Augment(rotation=180).apply(IMAGES, np.zeros((COUNT, 7)))
    torch.testing.assert_close(turned, IMAGES.float().flip(1, 2), rtol=0, atol=1e-2)


def test_brightness_and_contrast_stay_in_range_and_within_their_factor():
    numbers = np.zeros((COUNT, 7))
    bright = Augment(brightness=0.4).apply(IMAGES, numbers)
    torch.testing.assert_close(bright, IMAGES * 0.6)
    flat = Augment(contrast=1.0).apply(IMAGES, numbers)
    grey = IMAGES.float().mean((1, 2, 3))
    torch.testing.assert_close(flat, grey[:, None, None, None].expand_as(flat))
    strong = Augment(brightness=1.0, contrast=1.0)
    changed = strong.apply(IMAGES, draw(strong))
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 255


def test_presets():
    auto = Augment(flip=True)
    assert resolve_augment("auto", auto) is auto
    assert resolve_augment(None, auto) == resolve_augment("none", auto) == Augment()
    assert resolve_augment("flip_crop", auto) == Augment(flip=True, crop=4)
    assert resolve_augment("shift", auto) == Augment(crop=1) == PRESETS["shift"]
    with pytest.raises(NameNotFoundError, match="did you mean 'flip_crop'"):
        resolve_augment("flipcrop", auto)


@pytest.mark.parametrize(
    "options", [{"crop": -1}, {"rotation": 200}, {"brightness": 2}, {"contrast": -0.1}]
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        Augment(**options)
