"""Quality on corrupted images: the 15 corruptions of Hendrycks & Dietterich 2019.

The corruptions come from the package `imagecorruptions-imaug`. It applies the strengths of
ImageNet-C to images of any size from 32 pixels on, so on 32-pixel images they are stronger than
in the published files of CIFAR-10-C: compare networks by these figures, not with papers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoal.errors import ConfigError, DataError, OptionError, missing_extra, unknown_name
from shoal.modes import device_of, eval_mode
from shoal.passes.batches import Batches
from shoal.search.record import Record
from shoal.seeds import derive_seed, preserved_rng
from shoal.tasks import Task, find_task
from shoal.tasks.task import quality_of, width_of
from shoal.training.evaluate import judged

CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
_OWN_GENERATOR = ("impulse_noise", "glass_blur")
_LEAST_SIZE = 32  # pixels; the package takes no smaller images

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Robustness(Record):
    """The quality of a network on corrupted images, in points: of a classifier, top-1 in percent.

    Attributes:
        clean: on the images as they are.
        mean: over all corruptions and severities.
        by_corruption: for each corruption, one value per severity.
        severities: the severities, in that order.
        samples: number of images in each of them.
        seed: of the corruptions.
        quality_name: what the quality is called.
        quality_unit: "%", or "" where it has none.
    """

    clean: float
    mean: float
    by_corruption: dict[str, tuple[float, ...]]
    severities: tuple[int, ...]
    samples: int
    seed: int
    quality_name: str = "top-1"
    quality_unit: str = "%"


def robustness(network: nn.Module, loader: Iterable[Any], **options: Any) -> Robustness:
    """Evaluate one network on corrupted images; options and errors are `compare_robustness`'s."""
    return compare_robustness({"network": network}, loader, **options)["network"]


# Long because each of its arguments is explained; the body is short.
def compare_robustness(
    networks: Mapping[str, nn.Module],
    loader: Iterable[Any],
    *,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    seed: int = 0,
    samples: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    task: str | Task = "classify",
) -> dict[str, Robustness]:
    """Evaluate networks on the very same corrupted images; returns their qualities by name.

    Args:
        networks: networks that take images, by any names.
        loader: batches of normalised images `[B, C, H, W]`, C 1 or 3, and targets; test data.
        corruptions: names out of `CORRUPTIONS`.
        severities: from 1 (light) to 5.
        seed: decides the corruptions' random numbers, image by image.
        samples: use this many images only; the corruptions take a few milliseconds an image.
        mean: what was subtracted from each channel of pixels in [0, 1]; None reads it off a
            loader of shoal's.
        std: what they were divided by; likewise.
        progress: called with the corruptions and severities done and their total.
        task: what the networks are for.

    Raises:
        ShoalError: the package is not installed.
        NameNotFoundError: there is no such corruption.
        ConfigError: a severity is not 1 to 5, the normalisation is not known, or images are
            smaller than 32 pixels.
        DataError: the loader is empty, or its batches are not images.
    """
    check_options(corruptions, severities)
    goal = find_task(task)
    clean, seen = _qualities(networks, loader, samples, goal)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for name in corruptions:
        for severity in severities:
            data = corrupted(loader, name, severity, seed=seed, samples=samples, mean=mean, std=std)
            found[name, severity] = _qualities(networks, data, None, goal)[0]
            if progress is not None:
                progress(len(found), len(corruptions) * len(severities))
    return {
        network: Robustness(
            clean=clean[network],
            mean=fmean(every[network] for every in found.values()),
            by_corruption={
                name: tuple(found[name, severity][network] for severity in severities)
                for name in corruptions
            },
            severities=tuple(severities),
            samples=seen,
            seed=seed,
            quality_name=goal.quality_name,
            quality_unit=goal.quality_unit,
        )
        for network in networks
    }


def check_options(corruptions: Sequence[str], severities: Sequence[int]) -> None:
    """Raise `ShoalError` unless there are corruptions and severities, and all of them exist."""
    if not corruptions or not severities:
        raise ConfigError("nothing to measure: give at least one corruption and one severity")
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise unknown_name("corruption", name, CORRUPTIONS)
    for severity in severities:
        if severity not in SEVERITIES:
            raise OptionError("severity", severity, "a whole number from 1 to 5")


def corrupted(
    loader: Iterable[Any],
    corruption: str,
    severity: int,
    *,
    seed: int = 0,
    samples: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Return a loader of the same images, corrupted; see `compare_robustness`.

    An image's corruption depends on the seed and its place in the data, not on the batches.
    """
    check_options([corruption], [severity])
    mean = mean if mean is not None else getattr(loader, "mean", None)
    std = std if std is not None else getattr(loader, "std", None)
    if mean is None or std is None:
        raise ConfigError(
            "corrupting images needs to know how they were normalised: give mean and std"
        )
    return _Corrupted(loader, corruption, severity, seed, samples, tuple(mean), tuple(std))


@dataclass(frozen=True)
class _Corrupted:
    loader: Iterable[Any]
    corruption: str
    severity: int
    seed: int
    samples: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        corrupt, numbers = _library(), count()
        for _, batch in Batches(self.loader, samples=self.samples, shared=False, purpose="corrupt"):
            images = batch.args[0] if batch.args else next(iter(batch.kwargs.values()))
            changed = []
            for image, number in zip(self._pixels(images), numbers, strict=False):
                seed = derive_seed(self.seed, self.corruption, self.severity, number) % 2**32
                changed.append(corrupt(image, self.severity, self.corruption, seed))
            yield self._normalised(np.stack(changed), images), batch.target

    def _pixels(self, images: Tensor) -> Image:
        # [B, C, H, W], normalised -> [B, H, W, C], uint8
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"a batch has the shape {list(images.shape)}: corruptions need images [B, C, H, W] "
                "with 1 or 3 channels"
            )
        if min(images.shape[2:]) < _LEAST_SIZE:
            raise ConfigError(
                f"the images have {images.shape[2]}×{images.shape[3]} pixels: corruptions need "
                f"{_LEAST_SIZE} at least; give a larger image_size"
            )
        mean, std = self._scales(images)
        values = (images.double() * std + mean) * 255
        return values.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def _normalised(self, pixels: Image, like: Tensor) -> Tensor:
        mean, std = self._scales(like)
        values = torch.from_numpy(pixels).to(like.device).permute(0, 3, 1, 2).double() / 255
        if like.shape[1] == 1:  # the package answers in colour
            values = values.mean(1, keepdim=True)
        normalised = ((values - mean) / std).to(like.dtype)
        return normalised.contiguous(memory_format=torch.channels_last)

    def _scales(self, like: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.tensor([self.mean, self.std], dtype=torch.float64, device=like.device)
        return both[0].view(1, -1, 1, 1), both[1].view(1, -1, 1, 1)


def _qualities(
    networks: Mapping[str, nn.Module], data: Iterable[Any], samples: int | None, task: Task
) -> tuple[dict[str, float], int]:
    """Return the quality of each network; images, which take long to corrupt, are made once."""
    rows: dict[str, list[Tensor]] = {name: [] for name in networks}
    batches = Batches(data, samples=samples, shared=False, purpose="evaluate on")
    for number, batch in batches:
        for name, network in networks.items():
            with eval_mode(network), torch.no_grad():
                here = batch.to(device_of(network))
                rows[name].append(judged(network, here, task, number=number)[1])
    for own in rows.values():
        width_of(task, own)
    return {name: quality_of(task, torch.cat(own)) for name, own in rows.items()}, batches.seen


def _library() -> Callable[[Image, int, str, int], Image]:
    try:
        from imagecorruptions import corrupt
    except ImportError:
        raise missing_extra("imagecorruptions-imaug", "robustness", "corrupting images") from None

    def seeded(image: Image, severity: int, name: str, seed: int) -> Image:
        # Two have generators of their own and take a seed; the others draw from NumPy's.
        own = {"seed": seed} if name in _OWN_GENERATOR else {}
        with preserved_rng(torch.device("cpu")):
            np.random.seed(seed)
            found: Image = corrupt(image, severity=severity, corruption_name=name, **own)
        return found

    return seeded
