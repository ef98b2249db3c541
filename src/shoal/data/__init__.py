"""Data sets, loaders and augmentation."""

from shoal.data import cifar, digits, folder  # noqa: F401  (they register themselves)
from shoal.data.augment import Augment
from shoal.data.base import SeededLoader
from shoal.data.batch import Batch, split_batch
from shoal.data.dataset import DataSet, Loader, Reading, data_sets
from shoal.data.load import load_data
from shoal.data.loader import ImageLoader
from shoal.data.stream import StreamLoader

__all__ = [
    "Augment",
    "Batch",
    "DataSet",
    "ImageLoader",
    "Loader",
    "Reading",
    "SeededLoader",
    "StreamLoader",
    "data_sets",
    "load_data",
    "split_batch",
]
