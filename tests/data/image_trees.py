"""Small image files in the layouts of data sets."""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image


def write_image(path, size=(20, 14), mode="RGB"):
    """Write an image, (width, height), that no other path has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def truncate(path):
    """Cut off the end of a file."""
    path.write_bytes(path.read_bytes()[:-200])


def sizes(data):
    """Return how many samples the parts have."""
    return [data.train.num_samples, data.val.num_samples, data.test.num_samples]
