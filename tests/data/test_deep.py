from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from shoal.data.deep import eight_bits

RAMP = np.arange(256, dtype=np.uint32).reshape(16, 16)  # every grey of 8 bits


def read(path):
    with Image.open(path) as image:
        return eight_bits(image)


def saved(values, path, **tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tags.items():
        info[int(number[1:])] = value
    Image.fromarray(values).save(path, **({"tiffinfo": info} if tags else {}))
    return path


@pytest.mark.parametrize(
    "values",
    [
        (RAMP * 257).astype(np.uint16),
        RAMP.astype(np.int32),
        (RAMP * 257).astype(np.int32),
        (RAMP << 23).astype(np.int32),
        (RAMP / 255).astype(np.float32),
        RAMP.astype(np.float32),
        (RAMP * 257).astype(np.float32),
    ],
)
def test_every_grey_is_read_whatever_numbers_hold_it(values, tmp_path):
    np.testing.assert_array_equal(read(saved(values, tmp_path / "a.tiff")), RAMP)


def test_unsigned_integers_count_to_their_largest(tmp_path):
    path = saved((RAMP << 24).astype(np.uint32).view(np.int32), tmp_path / "a.tiff")
    data = bytearray(path.read_bytes())
    for little in (b"\x53\x01\x03\x00\x01\x00\x00\x00\x02",):  # SampleFormat: 2, signed
        at = data.index(little)
        data[at + 8] = 1
    path.write_bytes(data)
    np.testing.assert_array_equal(read(path), RAMP)


def test_sixteen_bits_of_other_formats(tmp_path):
    deep = (RAMP * 257).astype(">u2")
    Image.fromarray(deep.astype(np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + deep.tobytes())
    (tmp_path / "b.pgm").write_bytes(b"P5 16 16 1023\n" + (RAMP * 4).astype(">u2").tobytes())
    for name in ("a.png", "a.pgm"):
        np.testing.assert_array_equal(read(tmp_path / name), RAMP)
    off = read(tmp_path / "b.pgm").astype(int) - RAMP.astype(int)
    assert abs(off).max() <= 1


def test_where_white_is_zero(tmp_path):
    path = saved((RAMP * 257).astype(np.uint16), tmp_path / "a.tiff", t262=0)
    with Image.open(path) as image:
        if image.tag_v2[262] != 0:
            pytest.skip("this Pillow does not write such files")
    np.testing.assert_array_equal(read(path), 255 - RAMP)


def test_what_resizing_leaves_beyond_the_range_is_clipped(tmp_path):
    values = np.array([[-0.02, 0.0, 0.5, 1.0, 1.03]], dtype=np.float32)
    assert read(saved(values, tmp_path / "a.tiff")).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (np.array([[-1, 5]], dtype=np.int32), "values from -1"),
        (np.array([[-1, 1]], dtype=np.float32), "values from -1 to 1"),
        (np.array([[0, 1e9]], dtype=np.float32), "values from 0 to 1e\\+09"),
        (np.array([[0, np.nan]], dtype=np.float32), "not finite"),
    ],
)
def test_values_that_are_no_greys_are_refused(values, what, tmp_path):
    with pytest.raises(ValueError, match=what):
        read(saved(values, tmp_path / "a.tiff"))
