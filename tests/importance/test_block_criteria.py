"""Every criterion for blocks against a computation that shares nothing with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from block_networks import batches, removable
from torch import Tensor, nn

import shoal
from changed import changed
from shoal.errors import ConfigError
from shoal.importance import stages
from shoal.importance.without import alignment
from shoal.network import Network
from shoal.surgery import linearize_


def parts(model: nn.Module, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return penultimate features and logits, from the model itself."""
    kept: list[Tensor] = []
    handle = model.linear.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    with torch.no_grad():
        logits = model(images)
    handle.remove()
    return kept[0].numpy(), logits.numpy()


def without(model: nn.Module, block: str, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the same with a block's branch times zero."""
    handle = model.get_submodule(f"{block}.bn2").register_forward_hook(lambda m, x, y: y * 0)
    try:
        return parts(model, images)
    finally:
        handle.remove()


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    return exponents / exponents.sum(1, keepdims=True)


# ---------------------------------------------------------------------- one forward per block


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norms)


def by_cka(full: tuple, less: tuple, labels: np.ndarray) -> float:
    return 1 - linear_cka(full[0], less[0])


def by_kl(full: tuple, less: tuple, labels: np.ndarray) -> float:
    p, q = softmax(less[1]), softmax(full[1])
    return float((p * np.log(p / q)).sum(1).mean())


def by_loss(full: tuple, less: tuple, labels: np.ndarray) -> float:
    rows = np.arange(len(labels))
    own, other = (-np.log(softmax(v[1])[rows, labels]).mean() for v in (less, full))
    return float(own - other)


def by_accuracy(full: tuple, less: tuple, labels: np.ndarray) -> float:
    own, other = (100 * (v[1].argmax(1) == labels).mean() for v in (less, full))
    return float(other - own)


@pytest.mark.parametrize(
    ("criterion", "formula"),
    [
        ("cka", by_cka),
        ("kl", by_kl),
        ("lesion", by_loss),
        ("lesion?metric=accuracy", by_accuracy),
    ],
)
def test_what_the_network_gives_without_a_block(
    criterion: str,
    formula: Callable[..., float],
    model: nn.Module,
    network: Network,
    images: Tensor,
    labels: Tensor,
) -> None:
    scores = shoal.score(network, batches(images, labels), criterion)
    assert list(scores) == removable(network)
    full = parts(model, images)
    for name, value in scores.items():
        wanted = formula(full, without(model, name, images), labels.numpy())
        assert value == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_sites_are_lesioned_by_the_identity(
    network: Network, images: Tensor, labels: Tensor
) -> None:
    scores = shoal.score(network, batches(images, labels), "lesion", place="site")
    assert list(scores) == [site.name for site in network.sites]
    with torch.no_grad():
        dense = F.cross_entropy(network(images), labels)
        for name in list(scores)[::5]:
            less = changed(linearize_, network.copy(), name, how="identity")
            wanted = float(F.cross_entropy(less(images), labels) - dense)
            assert scores[name] == pytest.approx(wanted, abs=1e-10)


# ---------------------------------------------------------------------- what CKA compares


class Mapped(nn.Module):
    """A residual block that makes features of the four unit vectors, and a layer that reads them.

    Without the block the last layer reads (1, 0), (0, 1), (-1, 0), (0, -1); with it, the rows of
    `features`, to which columns of zeros are added.
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 2))
        self.head = nn.Linear(2, 3)
        self.one[0].weight.data = UNITS.clone()  # the rectifier then gives 1 to one of the four
        self.one[2].weight.data = (F.pad(features, (0, 2 - features.shape[1])) - UNITS).T
        self.one[2].bias.data.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.one(x))


UNITS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])


@pytest.mark.parametrize(
    ("features", "cka"),
    [
        # Rotated by 45° and √2 times as long.
        ([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], 1.0),
        ([[1.0], [1.0], [-1.0], [-1.0]], 0.707107),
        ([[1.0], [-1.0], [1.0], [-1.0]], 0.0),
        ([[1.0], [0.0], [0.0], [0.0]], 0.471405),
    ],
)
def test_cka_of_four_samples(features: list[list[float]], cka: float) -> None:
    network = shoal.capture(Mapped(torch.tensor(features)).eval(), UNITS)
    scores = shoal.score(network, [UNITS], "cka")
    assert list(scores.values()) == [pytest.approx(1.0 - cka, abs=1e-6)]


class ConvHead(nn.Module):
    """Two residual blocks, a gate with linear layers between, and a 1×1 convolution that answers.

    The answer is one for each position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.gate = nn.Linear(3, 3)
        self.head = nn.Conv2d(3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.first(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = x + torch.tanh(self.second(x))
        return self.head(torch.relu(x))


def test_cka_compares_channels_of_what_the_last_layer_reads() -> None:
    torch.manual_seed(0)
    model = ConvHead().double().eval()
    x = torch.randn(12, 3, 6, 6).double()
    network = shoal.capture(model, x[:2])
    scores = shoal.score(network, [x[:5], x[5:]], "cka")
    read: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(x)
        for name in ("first", "second"):
            changed, weight = model.get_submodule(name), model.get_parameter(f"{name}.weight")
            before = weight.clone(), changed.bias.clone()
            weight.zero_()
            changed.bias.zero_()
            model(x)
            weight.copy_(before[0])
            changed.bias.copy_(before[1])
    rows = [value.permute(0, 2, 3, 1).reshape(-1, 3).numpy() for value in read]
    for (name, score), y in zip(scores.items(), rows[1:], strict=True):
        assert score == pytest.approx(1.0 - linear_cka(rows[0], y), rel=1e-6), name
        assert score > 0.0


def test_alignment_of_equal_and_of_constant_features() -> None:
    x = torch.randn(20, 5).double()

    def aligned(x: Tensor, y: Tensor) -> float:
        x, y = (F.pad(rows, (1, 0), value=1.0) for rows in (x, y))
        return alignment(x.T @ x, y.T @ y, x.T @ y)

    ones = torch.ones(20, 5).double()
    assert aligned(x, x) == pytest.approx(1.0)
    assert aligned(x, 3.0 * x + 1.0) == pytest.approx(1.0)
    assert aligned(x, ones) == 0.0
    assert aligned(ones, ones) == 1.0


# ---------------------------------------------------------------------- one pass


def ends(
    model: nn.Module, names: Sequence[str], images: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what goes into and comes out of modules of the original."""
    kept: dict[str, tuple[Tensor, Tensor]] = {}

    def keeper(name: str) -> Callable[..., None]:
        return lambda module, x, y: kept.update({name: (x[0], y)})

    handles = [model.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return kept


def test_block_influence(model: nn.Module, network: Network, images: Tensor) -> None:
    kept = ends(model, removable(network), images)
    loader = [x for x in images.split(5)]
    by_sample = shoal.score(network, loader, "block_influence")
    by_position = shoal.score(network, loader, "block_influence", vectors="position")
    for name, (x, y) in kept.items():
        a, b = x.flatten(1).numpy(), y.flatten(1).numpy()
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert by_sample[name] == pytest.approx(1 - cosines.mean(), rel=1e-9)
        a, b = (v.movedim(1, -1).flatten(0, -2).numpy() for v in (x, y))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        both = (np.linalg.norm(a, axis=1) == 0) & (np.linalg.norm(b, axis=1) == 0)
        cosines = np.where(lengths > 0, (a * b).sum(1) / np.where(lengths > 0, lengths, 1), both)
        assert by_position[name] == pytest.approx(1 - cosines.mean(), rel=1e-9)


def test_the_rank_of_a_block_is_that_of_the_maps_it_gives(
    model: nn.Module, network: Network, images: Tensor
) -> None:
    kept = ends(model, removable(network), images)
    loader = list(images.split(5))
    bare = shoal.score(network, loader, "hrank?scope=global")
    by_stage = shoal.score(network, loader, "hrank")
    by_shape = {stage.title: stage.removable for stage in stages(network)}
    for name, (_, y) in kept.items():
        ranks = [np.linalg.matrix_rank(m) for m in y.flatten(0, 1).numpy()]
        assert bare[name] == by_stage.details[name]["rank"] == pytest.approx(np.mean(ranks))
    for names in by_shape.values():
        if names:
            assert sum(by_stage[n] for n in names) / len(names) == pytest.approx(1.0)


def test_the_entropy_of_a_block_is_the_mean_over_its_rectifiers(
    network: Network, images: Tensor
) -> None:
    loader = list(images.split(8))
    sites = shoal.score(network, loader, "entropy")
    blocks = shoal.score(network, loader, "block_entropy")
    for block in network.blocks:
        if block.removable:
            assert block.sites
            mean = sum(sites[site] for site in block.sites) / len(block.sites)
            assert blocks[block.name] == pytest.approx(mean)
    linear = changed(linearize_, network.copy(), "layer1.0.relu", how="identity")
    assert shoal.score(linear, loader, "block_entropy")["layer1.0"] == 0.0


# ---------------------------------------------------------------------- weights


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_magnitudes(criterion: str, power: int, model: nn.Module, network: Network) -> None:
    bare = shoal.score(network, (), criterion, scope="global")
    ranked = shoal.score(network, (), criterion)
    wanted = {}
    for name in removable(network):
        block = model.get_submodule(name)
        weights = [block.conv1.weight, block.conv2.weight]
        flat = np.concatenate([w.detach().numpy().ravel() for w in weights])
        wanted[name] = (np.abs(flat) ** power).mean()
        assert bare[name] == pytest.approx(wanted[name])
    for stage in ("layer1", "layer2", "layer3"):
        own = [name for name in wanted if name.startswith(stage)]
        mean = np.mean([wanted[name] for name in own])
        for name in own:
            assert ranked[name] == pytest.approx(wanted[name] / mean)


def test_the_scale_of_the_last_norm(model: nn.Module, network: Network) -> None:
    scores = shoal.score(network, (), "bn_scale", scope="global")
    for name, value in scores.items():
        gamma = model.get_submodule(f"{name}.bn2").weight.detach().numpy()
        assert value == pytest.approx(np.abs(gamma).mean())


def test_a_network_without_batch_norm_has_no_scale() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.line(x)

    with pytest.raises(ConfigError, match="no batch norm"):
        shoal.score(shoal.capture(Plain().eval(), torch.randn(2, 4)), (), "bn_scale")


# ---------------------------------------------------------------------- gradients


def small_network() -> tuple[nn.Module, Network, Tensor, Tensor]:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 4)
            self.one = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
            self.two = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.one(x)
            return self.head(x + self.two(x))

    torch.manual_seed(0)
    model = Small().double().eval()
    x, y = torch.randn(9, 3).double(), torch.arange(9) % 3
    return model, shoal.capture(model, x), x, y


def brute_gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """Return the gradient of the mean loss by central differences of numpy values."""
    step = 1e-5
    found = {}
    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        gradient = np.zeros(len(flat))
        for i in range(len(flat)):
            losses = []
            for sign in (1, -1):
                flat[i] += sign * step
                with torch.no_grad():
                    losses.append(float(F.cross_entropy(model(x), y)))
                flat[i] -= sign * step
            gradient[i] = (losses[0] - losses[1]) / (2 * step)
        found[name] = gradient
    return found


def along(model: nn.Module, x: Tensor, y: Tensor, way: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return how the gradient changes along a direction, by central differences."""
    step, sides = 1e-4, []
    for sign in (1, -1):
        for name, parameter in model.named_parameters():
            parameter.data += sign * step * torch.from_numpy(way[name]).view_as(parameter)
        sides.append(brute_gradients(model, x, y))
        for name, parameter in model.named_parameters():
            parameter.data -= sign * step * torch.from_numpy(way[name]).view_as(parameter)
    return {name: (sides[0][name] - sides[1][name]) / (2 * step) for name in way}


def test_gradients_by_finite_differences() -> None:
    model, network, x, y = small_network()
    loader = batches(x, y, 4)
    names = removable(network)
    assert names == ["one", "two"] or len(names) == 2
    g = brute_gradients(model, x, y)
    hg = along(model, x, y, g)
    theta = {name: p.detach().numpy().ravel().copy() for name, p in model.named_parameters()}
    formulas: dict[str, Callable[[str], np.ndarray]] = {
        "taylor": lambda n: (theta[n] * g[n]) ** 2,
        "snip": lambda n: np.abs(theta[n] * g[n]),
        "grasp": lambda n: theta[n] * hg[n],  # minus the paper's score: its highest goes first
    }
    for criterion, formula in formulas.items():
        scores = shoal.score(network, loader, criterion)
        for name, child in zip(names, ("one", "two"), strict=True):
            wanted = sum(formula(n).sum() for n in theta if n.startswith(child))
            assert scores[name] == pytest.approx(wanted, rel=1e-3, abs=1e-9)
