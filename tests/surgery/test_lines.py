"""The fitted line is the least-squares line of each channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, DataError, NameNotFoundError, TrainingError
from shoal.network import Network, capture
from shoal.passes.batches import observe
from shoal.surgery import FittedLine, LineMoments, fit_lines

RECTIFIERS = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0, 1), nn.LeakyReLU(), nn.PReLU(3), nn.RReLU(), nn.ELU(),
    nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.Softplus(),
]  # fmt: skip


def fit(z: Tensor, rectifier: nn.Module | None = None, size: int = 16) -> FittedLine:
    """The line fitted to a rectifier whose inputs are `z`, [N, 3, …], channels second."""
    first = nn.GroupNorm(1, z.shape[1]) if z.dim() > 2 else nn.Identity()
    network = capture(nn.Sequential(first, rectifier or nn.ReLU()), z[:2])
    if z.dim() > 2:  # only there to say where the channels are
        network.replace_module("0", nn.Identity())
    return fit_lines(network, z.split(size))["1"]


def polyfit(z: Tensor, rectifier: nn.Module) -> tuple[list[float], list[float]]:
    r = rectifier.eval()(z).detach()
    fits = [
        np.polyfit(z[:, c].double().flatten().numpy(), r[:, c].double().flatten().numpy(), 1)
        for c in range(z.shape[1])
    ]
    return [float(f[0]) for f in fits], [float(f[1]) for f in fits]


@pytest.mark.parametrize("rectifier", RECTIFIERS, ids=repr)
def test_the_line_is_the_least_squares_line_of_every_rectifier(rectifier: nn.Module) -> None:
    torch.manual_seed(0)
    z = torch.randn(70, 3) * torch.tensor([0.5, 2.0, 6.0]) + torch.tensor([0.3, -1.0, 2.0])
    line = fit(z, rectifier)
    slope, intercept = polyfit(z, rectifier)
    assert line.slope.tolist() == pytest.approx(slope, abs=1e-7)
    assert line.intercept.tolist() == pytest.approx(intercept, abs=1e-6)
    assert 0.0 < line.residual < 1.0


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "expanded"])
def test_the_layout_in_memory_does_not_matter(layout: str) -> None:
    torch.manual_seed(0)
    z = torch.randn(20, 3, 7, 5) + torch.tensor([0.3, -1.0, 2.0])[:, None, None]
    if layout == "channels_last":
        z = z.contiguous(memory_format=torch.channels_last)
    if layout == "expanded":
        z = z[..., :1].expand(20, 3, 7, 5)
    line = fit(z)
    slope, intercept = polyfit(z, nn.ReLU())
    assert line.slope.tolist() == pytest.approx(slope, abs=1e-9)
    assert line.intercept.tolist() == pytest.approx(intercept, abs=1e-9)


def test_always_on_is_the_identity_and_always_off_is_zero() -> None:
    z = torch.rand(50, 3) + 0.1
    z[:, 1] *= -1
    z[:, 2] = 0.0  # dead
    line = fit(z)
    assert line.slope.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-14)
    assert line.intercept.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-14)
    assert line.residual == pytest.approx(0.0, abs=1e-14)


def test_an_input_that_never_varies_has_a_constant_line() -> None:
    z = torch.full((999, 2), 12345.678)
    z[:, 1] = -0.1
    line = fit(z, nn.LeakyReLU(0.3))
    assert line.slope.tolist() == [0.0, 0.0]
    assert line.intercept.tolist() == pytest.approx([12345.678, -0.03], rel=1e-7)
    assert line.residual == pytest.approx(0.0, abs=1e-12)


class Bend(nn.Module):
    """A rectifier whose bend lies at 10⁴, for a network that was captured with a ReLU."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.relu(z - 10000.0) + 10000.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_mean_does_not_cost_digits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    z = (10000.0 + 0.1 * torch.randn(5000, 3, dtype=torch.float64)).to(dtype)
    network = capture(nn.Sequential(nn.Identity(), nn.ReLU()), z[:2])
    network.replace_module("1", Bend())
    line = fit_lines(network, z.split(1000))["1"]
    # The reference is computed about the bend, where nothing cancels.
    slope, intercept = polyfit(z.double() - 10000.0, nn.ReLU())
    assert line.slope.tolist() == pytest.approx(slope, abs=1e-9)
    at_bend = line.slope * 10000.0 + line.intercept - 10000.0
    assert at_bend.tolist() == pytest.approx(intercept, abs=1e-7)


def test_batches_do_not_matter() -> None:
    z = torch.randn(60, 3) + 0.5
    one = fit(z, size=60)
    for size in (1, 7):
        other = fit(z, size=size)
        assert torch.allclose(other.slope, one.slope, rtol=0, atol=1e-13)
        assert torch.allclose(other.intercept, one.intercept, rtol=0, atol=1e-13)
        assert other.residual == pytest.approx(one.residual, abs=1e-12)


def test_the_residual_is_the_share_of_variance_that_is_lost() -> None:
    z = torch.randn(4000, 1)
    line = fit(z)
    r = z.relu()
    lost = (r - (line.slope * z + line.intercept)).var(unbiased=False)
    assert line.residual == pytest.approx(float(lost / r.var(unbiased=False)), rel=1e-5)


def network() -> Network:
    return capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()), data())


def data() -> Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


def test_sites_are_fitted_by_name() -> None:
    assert list(fit_lines(network(), [data()])) == ["1", "3"]
    assert list(fit_lines(network(), [data()], ["3"])) == ["3"]
    assert list(fit_lines(network(), [data()], samples=3)) == ["1", "3"]


def test_bad_requests_say_what_is_wrong() -> None:
    with pytest.raises(NameNotFoundError, match="unknown site '2'"):
        fit_lines(network(), [data()], ["2"])
    with pytest.raises(DataError, match="the loader is empty"):
        fit_lines(network(), [])
    with pytest.raises(TrainingError, match="site '1' are not finite"):
        fit_lines(network(), [data(), data() * float("inf")])
    with pytest.raises(ConfigError, match="the network has no rectifier"):
        fit_lines(capture(nn.Sequential(nn.Linear(3, 4)), data()), [data()])


@pytest.mark.parametrize("shape", [(64, 6, 12, 12), (64, 40, 6), (4096, 6)])
def test_a_part_of_the_positions_gives_nearly_the_same_line(shape: tuple[int, ...]) -> None:
    """Of each batch other positions are taken, in every layout."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.GELU(), nn.Flatten(), nn.LazyLinear(2))
    batches = [(torch.randn(shape) * 2 + 0.3, None) for _ in range(6)]
    model(batches[0][0])
    network = capture(model.eval(), batches[0][0][:2])
    whole, part = LineMoments(), LineMoments(positions=1000)
    observe(network, batches, [whole, part])
    exact, near = whole.lines()["0"], part.lines()["0"]
    torch.testing.assert_close(near.slope, exact.slope, rtol=0.1, atol=0.05)
    torch.testing.assert_close(near.intercept, exact.intercept, rtol=0.1, atol=0.1)
