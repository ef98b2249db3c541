"""Grey images of more than 8 bits, as scanners and microscopes write them, in 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # numbers of TIFF's tags
_WIDTHS = (8, 16)  # bits that the values in a wider number may use


def eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Return a grey image of mode "I;16", "I" or "F" in 8 bits, `[H, W]`.

    16 bits count from 0 to 65,535. Of 32-bit integers the file does not say how many are used: they
    count to the smallest of 255, 65,535 and their own largest value that is not below the
    image's. Floating-point values count from 0 to 1, or to 255 or 65,535 likewise; what is up to
    half of that beyond either end, as resizing and filters leave it, is clipped.

    Raises:
        ValueError: values are negative, not finite, or beyond every range.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values >> 8).astype(np.uint8)
    elif image.mode == "F":
        grey = _from_reals(values)
    elif image.format in ("PNG", "PPM"):  # of 16 bits, widened
        grey = (values >> 8).astype(np.uint8)
    else:
        signed = _tag(image, _SAMPLE_FORMAT) == 2
        grey = _from_integers(values, (_tag(image, _BITS_PER_SAMPLE) or 32) - signed)
    return np.invert(grey) if _tag(image, _PHOTOMETRIC) == 0 else grey


def _tag(image: Image.Image, number: int) -> int | None:
    """Return the value of a TIFF's tag, of its first channel; None without it."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def _from_integers(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Return integers of up to `bits` bits (Pillow holds unsigned ones as signed) in 8 bits."""
    numbers = values.view(np.uint32) if bits == 32 else values
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0:
        raise ValueError(f"it has values from {lowest}, and no image has negative ones")
    used = next((width for width in _WIDTHS if width < bits and highest < 2**width), bits)
    return (numbers >> (used - 8)).astype(np.uint8)


def _from_reals(values: NDArray[Any]) -> NDArray[np.uint8]:
    lowest, highest = float(values.min()), float(values.max())
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("it has values that are not finite")
    tops = (1.0, *(2.0**width - 1 for width in _WIDTHS))
    top = next((top for top in tops if highest <= 1.5 * top), None)
    if top is None or lowest < -0.5 * top:
        raise ValueError(f"it has values from {lowest:g} to {highest:g}: give them from 0 to 1")
    return np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
