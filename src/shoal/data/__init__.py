"""Data sets, loaders and augmentation.

Example:
    >>> import shoal, torch
    >>> data = shoal.data.load_data("digits", batch_size=64)
    >>> images, labels = next(iter(data.train))
    >>> images.shape, data.num_classes
    (torch.Size([64, 1, 8, 8]), 10)
"""

from shoal.data import (  # noqa: F401  (they register themselves)
    built_in,
    domains,
    fine_grained,
    folder,
    tiny_imagenet,
)
from shoal.data.augment import Augment
from shoal.data.batch import Batch, split_batch
from shoal.data.dataset import DataSet, Loader, Reading, data_sets, load_data
from shoal.data.images import ImageFiles
from shoal.data.loader import ImageLoader

__all__ = [
    "Augment",
    "Batch",
    "DataSet",
    "ImageFiles",
    "ImageLoader",
    "Loader",
    "Reading",
    "data_sets",
    "load_data",
    "split_batch",
]
