from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from shoal.data.augment import Augment
from shoal.data.colour import grey_of, greyed, hue_turned, saturated
from shoal.errors import OptionError

IMAGES = torch.randint(0, 256, (6, 5, 4, 3), generator=torch.Generator().manual_seed(0)).float()
PLANES = IMAGES.permute(3, 0, 1, 2).contiguous()


def test_hue_turns_as_in_the_colour_space_hsv():
    turns = torch.tensor([-0.5, -0.3, -0.01, 0.0, 0.2, 0.5])
    turned = hue_turned(PLANES, turns[:, None, None]).permute(1, 2, 3, 0)
    for image, turn, found in zip(IMAGES, turns.tolist(), turned, strict=True):
        pixels = image.reshape(-1, 3).tolist()
        for (r, g, b), new in zip(pixels, found.reshape(-1, 3).tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(r, g, b)
            assert new == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=0.05)


def test_a_whole_turn_changes_nothing_and_grey_has_no_hue():
    grey = grey_of(PLANES).expand(3, -1, -1, -1)
    torch.testing.assert_close(hue_turned(grey, torch.full((6, 1, 1), 0.3)), grey)
    torch.testing.assert_close(hue_turned(PLANES, torch.ones(6, 1, 1)), PLANES, atol=0.05, rtol=0)


def test_saturation_goes_from_grey_to_the_image_and_beyond():
    def by(factor):
        return saturated(PLANES, torch.full((6, 1, 1), factor))

    torch.testing.assert_close(by(1.0), PLANES)
    torch.testing.assert_close(by(0.0), grey_of(PLANES).expand(3, -1, -1, -1))
    assert by(2.0).min() >= 0
    assert by(2.0).max() <= 255


def test_grey_is_taken_for_the_chosen_images_alone():
    chosen = torch.tensor([True, False] * 3)
    found = greyed(PLANES, chosen)
    assert torch.equal(found[:, ~chosen], PLANES[:, ~chosen])
    assert torch.equal(found[:, chosen], grey_of(PLANES[:, chosen]).expand(3, -1, -1, -1))


def test_colours_draw_numbers_of_their_own_after_all_others():
    def numbers(augment):
        return augment.draw(6, np.random.default_rng(0))

    plain = numbers(Augment(flip=True, brightness=0.4))
    colours = numbers(Augment(flip=True, brightness=0.4, hue=0.1))
    assert np.array_equal(colours[:, :7], plain)
    assert colours.shape == (6, 10)


def test_a_share_is_mirrored_and_a_share_becomes_grey():
    images = IMAGES.to(torch.uint8).repeat(200, 1, 1, 1)
    augment = Augment(flip=0.8, grey=0.25)
    changed = augment.apply(images, augment.draw(1200, np.random.default_rng(0)))
    grey = (changed[..., 0] == changed[..., 1]).flatten(1).all(1)
    assert 0.2 < float(grey.float().mean()) < 0.3
    flipped = Augment(flip=0.8).apply(images, augment.draw(1200, np.random.default_rng(0)))
    mirrored = (flipped == images.flip(2)).flatten(1).all(1)
    assert 0.76 < float(mirrored.float().mean()) < 0.84


def test_images_of_one_channel_have_no_colour_to_change():
    grey = IMAGES[..., :1].to(torch.uint8)
    augment = Augment(saturation=0.4, hue=0.4, grey=0.5)
    assert torch.equal(augment.apply(grey, augment.draw(6, np.random.default_rng(0))), grey)


def test_values_out_of_range_are_named():
    for wrong in ({"hue": 0.6}, {"saturation": 2.0}, {"flip": 1.5}, {"mix": -1.0}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            Augment(**wrong)
