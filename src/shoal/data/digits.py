"""scikit-learn's handwritten digits: the data set that needs no download."""

from __future__ import annotations

import numpy as np

from shoal.data.assemble import from_arrays
from shoal.data.augment import Augment
from shoal.data.dataset import DataSet, Reading, data_sets
from shoal.errors import ConfigError

__all__ = ["load_digits_data"]


@data_sets.register("digits")
def load_digits_data(root: str, options: Reading) -> DataSet:
    """Return the 1,797 digits, 8×8 pixels, one channel.

    They are split, stratified, into 70 % for training, 15 % for validation and 15 % for testing.
    "auto" augmentation is none: the digits are centred and fill their 8 pixels, and a network
    trained on shifted ones scored no better ("shift" moves by up to one pixel).

    Args:
        root: empty; the data are part of scikit-learn.
        options: how to read them.

    Raises:
        ConfigError: a root was given.
    """
    if root:
        raise ConfigError(
            f"the data set 'digits' has no folder: write 'digits', not 'digits:{root}'"
        )
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 0..16 counts the dark cells of a 4×4 square.
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # [N, 8, 8, 1]
    return from_arrays(
        "digits",
        grey,
        digits.target.astype(np.int64),
        [str(name) for name in digits.target_names],
        options,
        auto=Augment(),
        # These map the pixels to [-1, 1], whatever the split.
        mean=(0.5,),
        std=(0.5,),
    )
