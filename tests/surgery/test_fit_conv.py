"""The fit of one layer is the least-squares solution, however the data are cut and sampled."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from shoal.errors import ConfigError, TrainingError
from shoal.network.reach import LayerShape
from shoal.surgery.fit_conv import FittedLayer, LayerMoments


def fitted(
    shape: LayerShape,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    ridge: float = 0.0,
    batch: int | None = None,
    rows: int | None = None,
    order: torch.Tensor | None = None,
) -> FittedLayer:
    moments = LayerMoments(shape, rows=rows, samples=len(x))
    size = batch or len(x)
    order = torch.arange(len(x)) if order is None else order
    for chosen in order.split(size):
        moments.add(x[chosen], y[chosen], chosen)
    moments.finish()
    return moments.solve(ridge)


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


CONVS = [
    nn.Conv2d(3, 5, 3, padding=1),
    nn.Conv2d(3, 4, 3, stride=2, padding=1),
    nn.Conv2d(2, 4, (1, 3), stride=(2, 1), padding=(0, 1)),
    nn.Conv2d(3, 4, 3, padding=2, dilation=2),
    nn.Conv2d(4, 6, 1, stride=2),
    nn.Conv2d(2, 3, 5),
]


def shape_of(conv: nn.Conv2d) -> LayerShape:
    padding = conv.padding
    assert isinstance(padding, tuple)
    return LayerShape(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, padding, conv.dilation
    )


@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_a_convolution_is_recovered_from_what_it_does(conv: nn.Conv2d) -> None:
    torch.manual_seed(0)
    conv.reset_parameters()
    x = random(24, conv.in_channels, 9, 8)
    with torch.no_grad():
        found = fitted(shape_of(conv), x, conv(x), batch=7)
    assert found.residual < 1e-6  # what float32 leaves
    assert torch.allclose(found.weight.float(), conv.weight, atol=1e-5)
    assert torch.allclose(found.bias.float(), conv.bias, atol=1e-5)
    assert torch.allclose(found.layer(conv.weight)(x), conv(x), atol=1e-4)


def test_a_linear_layer_is_recovered_on_the_last_dimension() -> None:
    linear = nn.Linear(6, 4)
    x = random(16, 3, 5, 6)
    found = fitted(LayerShape(6, 4), x, linear(x).detach())
    assert found.residual < 1e-6  # what float32 leaves
    assert torch.allclose(found.layer(linear.weight)(x), linear(x), atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_it_is_the_least_squares_solution(mean: float) -> None:
    x, y = random(20, 3, 7, 7) + mean, random(20, 4, 7, 7, seed=1) - mean
    found = fitted(LayerShape(3, 4, (3, 3), (1, 1), (0, 0), (1, 1)), x, y[:, :, :5, :5], batch=6)
    patches = nn.functional.unfold(x.double(), 3).transpose(1, 2).reshape(-1, 27).numpy()
    targets = y[:, :, :5, :5].permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    design = np.hstack([patches - mean, np.ones((len(patches), 1))])
    best, squares, *_ = np.linalg.lstsq(design, targets, rcond=None)
    assert np.allclose(found.weight.reshape(4, -1).numpy(), best[:27].T, atol=1e-4)
    shifted = found.bias.numpy() + found.weight.reshape(4, -1).sum(1).numpy() * mean
    assert np.allclose(shifted, best[27], atol=1e-3 if mean else 1e-5)
    share = squares.sum() / ((targets - targets.mean(0)) ** 2).sum()
    n = len(patches)
    assert found.residual == pytest.approx(share * (n - 1) / (n - 28), rel=1e-4)


def test_ridge_shrinks_as_the_formula_says() -> None:
    x, y = random(50, 6), random(50, 3, seed=1)
    found = fitted(LayerShape(6, 3), x, y, ridge=0.1)
    centred = (x - x.mean(0)).double()
    gram = centred.T @ centred
    strength = 0.1 * gram.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.solve(gram + strength, centred.T @ (y - y.mean(0)).double())
    assert torch.allclose(found.weight, expected.T, atol=1e-6)


@pytest.mark.parametrize("rows", [None, 300])
def test_neither_the_cut_into_batches_nor_their_order_matters(rows: int | None) -> None:
    shape = LayerShape(3, 4, (3, 3), (1, 1), (1, 1), (1, 1))
    x, y = random(20, 3, 7, 7), random(20, 4, 7, 7, seed=1)
    whole = fitted(shape, x, y, rows=rows)
    mixed = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    for order in (torch.arange(20), torch.arange(20).flip(0), mixed):
        cut = fitted(shape, x, y, batch=3, rows=rows, order=order)
        assert cut.rows == whole.rows == (rows or 20 * 49)
        assert torch.allclose(whole.weight, cut.weight, atol=1e-6)
        assert whole.residual == pytest.approx(cut.residual, rel=1e-5)


def test_samples_give_different_positions() -> None:
    moments = LayerMoments(LayerShape(3, 4, (3, 3), (1, 1), (1, 1), (1, 1)), rows=300, samples=100)
    chosen = moments._choose(100 * 64, 100, torch.arange(100), torch.device("cpu")).view(100, 3)
    within = chosen - 64 * torch.arange(100)[:, None]
    assert bool((within >= 0).all() & (within < 64).all())
    assert all(len(set(row.tolist())) == 3 for row in within)
    assert len(within.unique()) == 64  # together they cover the image


def test_memory_layout_does_not_matter() -> None:
    shape = LayerShape(3, 4, (3, 3), (2, 2), (1, 1), (1, 1))
    x, y = random(8, 3, 8, 8), random(8, 4, 4, 4, seed=1)
    one = fitted(shape, x, y)
    other = fitted(shape, x.to(memory_format=torch.channels_last), y)
    assert torch.equal(one.weight, other.weight)


def test_positions_are_drawn_and_bounded() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = random(30, 3, 16, 16)
    found = fitted(shape_of(conv), x, conv(x).detach(), batch=10, rows=600)
    assert found.rows == 600
    assert torch.allclose(found.weight.float(), conv.weight, atol=1e-4)


def test_the_residual_of_noise_is_one_also_on_few_positions() -> None:
    shape = LayerShape(40, 8)
    x, y = random(80, 40), random(80, 8, seed=1)
    assert fitted(shape, x, y).residual == pytest.approx(1.0, abs=0.1)


def test_dead_and_doubled_channels_do_no_harm() -> None:
    x = random(40, 4)
    x = torch.cat([x, torch.zeros(40, 1), x[:, :1]], dim=1)
    linear = nn.Linear(6, 3)
    found = fitted(LayerShape(6, 3), x, linear(x).detach(), ridge=1e-5)
    assert torch.allclose(found.layer(linear.weight)(x), linear(x), atol=1e-3)
    assert found.weight.isfinite().all()


def test_an_input_that_never_varies_gives_the_mean() -> None:
    found = fitted(LayerShape(4, 2), torch.ones(20, 4), random(20, 2))
    assert torch.equal(found.weight, torch.zeros(2, 4, dtype=torch.float64))
    assert torch.allclose(found.bias, random(20, 2).double().mean(0), atol=1e-6)


def test_too_few_positions_are_an_error() -> None:
    with pytest.raises(ConfigError, match="has 10 positions to fit 20 weights"):
        fitted(LayerShape(20, 2), random(10, 20), random(10, 2))


def test_activations_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        fitted(LayerShape(2, 2), random(10, 2), random(10, 2) / 0.0)


@pytest.mark.slow
def test_512_channels_with_a_3x3_kernel_stay_below_2_gib() -> None:
    script = (
        "import resource, torch\n"
        "from shoal.network.reach import LayerShape\n"
        "from shoal.surgery.fit_conv import LayerMoments\n"
        "shape = LayerShape(512, 512, (3, 3), (1, 1), (1, 1), (1, 1))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "moments = LayerMoments(shape, samples=1000, rows=6000)\n"
        "for _ in range(10):\n"
        "    x = torch.randn(100, 512, 7, 7)\n"
        "    moments.add(x, x)\n"
        "moments.finish()\n"
        "moments.solve()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2 * 2**20  # KiB
