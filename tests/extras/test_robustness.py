from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from shoal.data.loader import ImageLoader
from shoal.errors import ConfigError, DataError, NameNotFoundError, ShoalError
from shoal.extras import robustness as measure
from shoal.extras.robustness import CORRUPTIONS, compare_robustness, corrupted, robustness

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def library() -> None:
    pytest.importorskip("imagecorruptions", reason="imagecorruptions-imaug is not installed")


def loader(count: int = 6, size: int = 32, batch: int = 4) -> ImageLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator).byte()
    labels = torch.arange(count) % 3
    return ImageLoader(images, labels, batch_size=batch, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 3))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "name",
    [n if n != "glass_blur" else pytest.param(n, marks=pytest.mark.slow) for n in CORRUPTIONS],
)
def test_corruptions_follow_from_the_seed_alone(name: str) -> None:
    def images(batch: int, seed: int) -> Tensor:
        return torch.cat([x for x, _ in corrupted(loader(batch=batch), name, 3, seed=seed)])

    first = images(4, seed=1)
    assert torch.equal(first, images(2, seed=1))
    clean = torch.cat([x for x, _ in loader()])
    assert first.shape == clean.shape
    assert not torch.equal(first, clean)
    assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("library")
def test_noise_differs_with_the_seed_and_the_image() -> None:
    same = ImageLoader(torch.full((2, 3, 32, 32), 99).byte(), torch.zeros(2, dtype=torch.long))
    ((one, _),) = corrupted(same, "gaussian_noise", 3, seed=0)
    ((two, _),) = corrupted(same, "gaussian_noise", 3, seed=1)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, two)


@pytest.mark.usefixtures("library")
def test_accuracies_of_all_corruptions_and_severities() -> None:
    model = net()
    found = robustness(
        model, loader(), corruptions=["gaussian_noise", "fog"], severities=(1, 5), samples=6
    )
    assert found.samples == 6
    assert set(found.by_corruption) == {"gaussian_noise", "fog"}
    values = [value for row in found.by_corruption.values() for value in row]
    assert len(values) == 4
    assert all(0 <= value <= 100 for value in values)
    assert found.mean == pytest.approx(sum(values) / 4)
    assert found.to_dict()["severities"] == [1, 5]
    wanted = [model(x).argmax(1) == y for x, y in corrupted(loader(), "fog", 5)]
    assert found.by_corruption["fog"][1] == pytest.approx(100 * float(torch.cat(wanted).sum()) / 6)


@pytest.mark.usefixtures("library")
def test_images_that_cannot_be_corrupted() -> None:
    with pytest.raises(ConfigError, match="32"):
        list(corrupted(loader(size=16), "fog", 1))
    flat = [(torch.zeros(2, 12), torch.zeros(2))]
    with pytest.raises(DataError, match="images"):
        list(corrupted(flat, "fog", 1, mean=(0.5,), std=(0.5,)))


def test_wrong_options_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NameNotFoundError, match="fog"):
        corrupted(loader(), "fogg", 1)
    with pytest.raises(ConfigError, match="1 to 5"):
        corrupted(loader(), "fog", 6)
    with pytest.raises(ConfigError, match="give mean and std"):
        corrupted([(torch.zeros(2, 3, 32, 32), torch.zeros(2))], "fog", 1)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(ShoalError, match=r"shoal\[robustness\]"):
        list(corrupted(loader(), "fog", 1))


def test_networks_are_compared_on_the_very_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def darken(image: measure.Image, severity: int, name: str, seed: int) -> measure.Image:
        made.append(name)
        darker: measure.Image = image // (severity + 1)
        return darker

    monkeypatch.setattr(measure, "_library", lambda: darken)
    networks = {"one": net(), "other": nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))}
    options = {"corruptions": ["fog", "snow"], "severities": (1, 4), "samples": 5}
    found = compare_robustness(networks, loader(), **options)
    assert len(made) == 2 * 2 * 5
    for name, network in networks.items():
        assert found[name] == robustness(network, loader(), **options)
        assert found[name].samples == 5


def test_other_loaders_give_their_first_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_library", lambda: lambda image, *_: image)
    batches = [(torch.rand(4, 3, 32, 32), torch.arange(4) % 3) for _ in range(3)]
    scale = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    model = net()
    found = robustness(model, batches, corruptions=["fog"], severities=[1], samples=6, **scale)
    assert found.samples == 6
    images, labels = torch.cat([x for x, _ in batches])[:6], torch.cat([y for _, y in batches])[:6]
    right = (model(images).argmax(1) == labels).double().mean()
    assert found.clean == pytest.approx(100 * float(right))


def test_nothing_to_measure_is_one_line() -> None:
    for options in ({"corruptions": []}, {"severities": []}):
        with pytest.raises(ConfigError, match="nothing to measure"):
            robustness(net(), loader(), **options)  # type: ignore[arg-type]
