from __future__ import annotations

import numpy as np
from PIL import Image

from shoal.data.frame import Cut, Frame


def image(width=50, height=30):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def rng():
    return np.random.default_rng(0)


def test_a_squeezed_image_keeps_its_borders():
    whole = image().resize((20, 20), Image.Resampling.BILINEAR)
    assert np.array_equal(Frame(20, 20, squeeze=True).centre(image()), np.asarray(whole))


def test_without_an_area_a_square_of_the_resized_image_is_cut_out():
    frame = Frame(8, 12, squeeze=True, cut=Cut(area=None))
    whole = np.asarray(image().resize((12, 12), Image.Resampling.BILINEAR))
    found = frame.random(image(), rng())
    squares = [whole[y : y + 8, x : x + 8] for y in range(5) for x in range(5)]
    assert any(np.array_equal(found, square) for square in squares)


def test_the_share_of_the_area_is_kept_to():
    # A ramp from left to right: the values of a part tell how wide it is.
    ramp = np.repeat(np.linspace(0, 255, 400)[None, :, None], 400, axis=0).repeat(3, axis=2)
    frame, numbers = Frame(64, 64, cut=Cut((0.8, 1.0))), rng()
    spans = [
        np.ptp(frame.random(Image.fromarray(ramp.astype(np.uint8)), numbers)) for _ in range(50)
    ]
    assert min(spans) >= 255 * np.sqrt(0.8 * 3 / 4) - 8
    assert max(spans) <= 255


def test_what_a_rotation_brings_in_is_black():
    white = Image.fromarray(np.full((60, 60, 3), 255, dtype=np.uint8))
    frame = Frame(60, 60, cut=Cut((1.0, 1.0), rotation=30.0))
    turned = [frame.random(white, np.random.default_rng(seed)) for seed in range(5)]
    assert any((corner == 0).any() for corner in turned)
    assert all((corner[30, 30] == 255).all() for corner in turned)
