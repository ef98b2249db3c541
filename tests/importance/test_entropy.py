"""The entropy of each site is the paper's, whatever the layout, the batches and the rectifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from entropy_checks import bits, pooled_entropy, published_entropy, stored_inputs
from torch import Tensor, nn

from shoal import importance
from shoal.errors import ConfigError, TrainingError
from shoal.importance import Scores
from shoal.models import cifar_resnet20, load_checkpoint
from shoal.network import Network, capture


def score(network: Network, batches: list[Tensor], **options: object) -> Scores:
    return importance.score(network, batches, **options)  # type: ignore[arg-type]


@cache
def lone_rectifier(channels: int) -> Network:
    return capture(nn.Sequential(nn.ReLU()), torch.randn(2, channels))


def entropy_of(z: Tensor, **options: object) -> float:
    """The entropy of a single rectifier whose inputs are `z`, [N, C]."""
    return score(lone_rectifier(z.shape[1]), [z], **options)["0"]


@pytest.fixture(scope="module")
def resnet20(resnet20_weights: Path) -> Network:
    model = cifar_resnet20()
    load_checkpoint(model, resnet20_weights)
    return capture(model.eval(), torch.randn(2, 3, 32, 32))


def images(count: int, size: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [min(size, count - start) for start in range(0, count, size)]
    return [torch.randn(n, 3, 32, 32, generator=generator) for n in shapes]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_resnet20_equals_a_computation_from_stored_activations(
    resnet20: Network, layout: torch.memory_format
) -> None:
    batches = [batch.contiguous(memory_format=layout) for batch in images(20, 8)]
    kept = stored_inputs(resnet20, batches)
    scores = score(resnet20, batches)
    assert list(scores) == [site.name for site in resnet20.sites]
    assert len(scores) == 19
    assert scores.samples == 20
    for name, z in kept.items():
        assert scores[name] == pytest.approx(pooled_entropy(np.concatenate(z)), abs=1e-6)
        assert scores.details[name]["channels"] == z[0].shape[-1]
    published = score(resnet20, batches, zeros="on", pooling="batch")
    for name, z in kept.items():
        assert published[name] == pytest.approx(published_entropy(z), abs=1e-6)


class Windows(nn.Module):
    """Attention-like windows: a sample's positions become rows of dimension 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        return self.second(torch.nn.functional.gelu(self.first(x)))


class TimeFirst(nn.Module):
    """The batch is not the first dimension of the rectifier's input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x.transpose(0, 1))).transpose(0, 1)


class NHWC(nn.Module):
    """The multi-layer perceptron of a Swin block: features last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 12), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x))


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "NCHW": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), (3, 6, 6), 5),
    "NHWC": (NHWC, (4, 6, 3), 12),
    "tokens × channels": (lambda: nn.Sequential(nn.Linear(3, 7), nn.GELU()), (9, 3), 7),
    "N × C": (lambda: nn.Sequential(nn.Linear(3, 7), nn.ReLU()), (3,), 7),
    "Conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU6()), (3, 9), 4),
    "Conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 2), nn.ReLU()), (3, 4, 4, 4), 4),
    "windows": (Windows, (4, 6, 3), 6),
    "time first": (TimeFirst, (7, 3), 5),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_equals_a_computation_from_stored_activations(name: str) -> None:
    make, shape, channels = LAYOUTS[name]
    torch.manual_seed(0)
    batches = [torch.randn(n, *shape) for n in (5, 5, 3)]
    network = capture(make(), batches[0])
    (site,) = network.sites
    assert site.channels == channels
    kept = stored_inputs(network, batches)[site.name]
    assert kept[0].shape[-1] == channels
    assert score(network, batches)[site.name] == pytest.approx(
        pooled_entropy(np.concatenate(kept)), abs=1e-12
    )
    if len(shape) == 3 and name == "NCHW":
        batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
        assert score(network, batches)[site.name] == pytest.approx(
            pooled_entropy(np.concatenate(kept)), abs=1e-12
        )


@pytest.mark.parametrize("zeros", ["exclude", "on", "off"])
def test_zeros_count_as_asked(zeros: str) -> None:
    z = torch.tensor([[1.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, -0.0], [-1.0, 2.0, -3.0, 0.0]])
    assert entropy_of(z, zeros=zeros) == pytest.approx(pooled_entropy(z.numpy(), zeros))


def test_dead_channels_score_zero_unless_their_zeros_count() -> None:
    norm = nn.BatchNorm2d(2)
    norm.weight.data = torch.tensor([1.0, 0.0])  # the second channel is pruned: always 0
    model = nn.Sequential(nn.Conv2d(3, 2, 1), norm, nn.ReLU()).eval()
    x = torch.randn(64, 3, 4, 4)
    network = capture(model, x)
    z = model[:2](x).detach().movedim(1, -1).reshape(-1, 2).numpy()
    alive = float(bits((z[:, :1] > 0).mean(0)).mean())
    assert score(network, [x])["2"] == pytest.approx(alive / 2, abs=1e-6)
    mixed = [x, x.flip(0)]
    assert score(network, mixed, zeros="on")["2"] == pytest.approx(alive / 2, abs=1e-6)
    assert score(network, [x]).details["2"]["always_off"] == 1


def test_always_on_and_always_off_give_nothing_and_a_fair_coin_one_bit() -> None:
    on = torch.rand(8, 3) + 0.1
    assert entropy_of(on) == 0.0
    assert entropy_of(-on) == 0.0
    assert entropy_of(torch.cat([on, -on])) == 1.0
    assert entropy_of(torch.zeros(8, 3)) == 0.0
    assert entropy_of(torch.cat([on, -on, torch.zeros(8, 3)])) == 1.0


RECTIFIERS = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0, 1), nn.LeakyReLU(), nn.PReLU(), nn.PReLU(3), nn.ELU(),
    nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.Softplus(),
]  # fmt: skip


@pytest.mark.parametrize("rectifier", RECTIFIERS, ids=repr)
def test_the_state_is_the_sign_of_the_input_for_every_rectifier(rectifier: nn.Module) -> None:
    z = 8 * torch.randn(40, 3)
    network = capture(nn.Sequential(nn.Identity(), rectifier), z[:2])
    expected = pooled_entropy(z.numpy())
    assert score(network, [z])["1"] == pytest.approx(expected, abs=1e-12)


@cache
def exact_capture() -> Network:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3)
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.ReLU())
    for parameter in model.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape).float()
    return capture(model, torch.randn(2, 3, 8, 8))


def exact_network() -> tuple[Network, Tensor]:
    """A network of small integers: no sum rounds, so that batches cannot change a sign."""
    generator = torch.Generator().manual_seed(0)
    return exact_capture().copy(), torch.randint(-4, 5, (96, 3, 8, 8), generator=generator).float()


def test_pooling_over_all_does_not_depend_on_batches_at_all() -> None:
    network, x = exact_network()
    whole = score(network, [x])
    for size in (1, 7, 32):
        assert score(network, list(x.split(size))) == whole
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))]
    assert score(network, list(shuffled.split(10))) == whole
    assert score(network, list(x.split(10))[::-1]) == whole


def test_averaging_over_batches_is_lower_and_one_batch_is_the_whole() -> None:
    network, x = exact_network()
    whole = score(network, [x])
    one = score(network, [x], pooling="batch")
    previous = whole
    for size in (48, 16, 4):
        lower = score(network, list(x.split(size)), pooling="batch")
        for name in whole:
            assert one[name] == pytest.approx(whole[name], abs=1e-9)
            assert lower[name] <= previous[name] + 1e-9
        previous = lower
    backwards = score(network, list(x.split(4))[::-1], pooling="batch")
    assert backwards == previous  # added up without rounding


def expected_of_batches(p: float, size: int) -> float:
    """The mean entropy of batches of a neuron that is ON with probability p, exactly."""
    k = np.arange(size + 1)
    chances = np.array([math.comb(size, int(i)) * p**i * (1 - p) ** (size - i) for i in k])
    return float((chances * bits(k / size)).sum())


@pytest.mark.parametrize(
    ("size", "expected"), [(None, 0.0808), (128, 0.0742), (16, 0.0524)], ids=str
)
def test_a_rare_state_scores_as_the_binomial_distribution_says(
    size: int | None, expected: float
) -> None:
    """A neuron that is ON once in a hundred: pooled, and averaged over batches."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(12800, 40, generator=generator).argsort(0)
    z = (order < 128).float() - 0.5
    network = lone_rectifier(40)
    if size is None:
        assert score(network, list(z.split(1000)))["0"] == pytest.approx(expected, abs=5e-5)
    else:
        assert expected_of_batches(0.01, size) == pytest.approx(expected, abs=5e-5)
        found = score(network, list(z.split(size)), pooling="batch")["0"]
        assert found == pytest.approx(expected, abs=0.002)


def test_linearized_sites_are_not_scored() -> None:
    from shoal.surgery import linearize_

    network, x = exact_network()
    linearize_(network, ["1"], how="identity")
    assert list(score(network, [x])) == ["3"]
    linearize_(network, ["3"], how="identity")
    with pytest.raises(ConfigError, match="no rectifier left"):
        score(network, [x])


def test_details_tell_the_states() -> None:
    z = torch.tensor([[1.0, -1.0, 1.0], [2.0, -2.0, -1.0], [0.0, -2.0, -1.0]])
    network = capture(nn.Sequential(nn.ReLU()), z)
    details = score(network, [z]).details["0"]
    assert details == {"on": 3 / 8, "always_on": 1, "always_off": 1, "channels": 3}


@pytest.mark.parametrize("pooling", ["all", "batch"])
def test_nan_is_an_error_that_names_the_site(pooling: str) -> None:
    network, x = exact_network()
    network.get_parameter("2.weight").data[1, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match="input of site '3' is NaN"):
        score(network, list(x.split(32)), pooling=pooling)
    x[40, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match="input of site '1' is NaN"):
        score(network, list(x.split(32)), pooling=pooling)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_types_are_scored(dtype: torch.dtype) -> None:
    network, x = exact_network()
    whole = score(network, [x])
    found = score(network.to(dtype), [x.to(dtype)])
    for name in whole:
        # bfloat16 rounds the second layer's inputs, but keeps the signs of all but ties.
        assert found[name] == pytest.approx(whole[name], abs=0.02)
