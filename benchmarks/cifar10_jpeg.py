"""Write CIFAR-10 as a folder of JPEG files, its test images in two halves.

    python benchmarks/cifar10_jpeg.py c10split

fetches CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html, 170 MB), checks it,
and writes `c10split/train`, `val` and `test`, 50,000, 5,000 and 5,000 images. Half of the test
images decide and the other half is reported: published weights have seen all training images, on
which they are better than they are. `--data FOLDER` is where the archive is kept, or lies already.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shoal.compat import import_torchvision
from shoal.data.split import stratified_split


def write(images: Any, labels: Sequence[int], classes: Sequence[str], folder: Path) -> None:
    """Write pixels `[N, H, W, 3]` as `folder/CLASS/NNNNN.jpg`, at quality 75."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(pixels).save(folder / classes[label] / f"{number:05}.jpg", quality=75)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args(words)
    reader = import_torchvision().datasets.CIFAR10
    train = reader(options.data, train=True, download=True)
    test = reader(options.data, train=False, download=True)
    write(train.data, train.targets, train.classes, options.out / "train")
    labels = np.asarray(test.targets, dtype=np.int64)
    halves = stratified_split(labels, 0.5, seed=0, purpose="split test", classes=test.classes)
    for part, half in zip(("val", "test"), halves, strict=True):
        write(test.data[half], labels[half].tolist(), test.classes, options.out / part)
    print(f"{options.out}: {len(train.data)} train, {len(halves[0])} val, {len(halves[1])} test")


if __name__ == "__main__":
    main()
