"""Lines without data: TLC's known figures, the closed forms, and networks where they cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.errors import ConfigError, NameNotFoundError
from shoal.network import Network
from shoal.network.modules import ByChannel, Line
from shoal.surgery.linearize import replace_
from shoal.surgery.norm_lines import (
    Gaussian,
    implied_line,
    implied_lines,
    norm_inputs,
    share_on,
)

BETA, GAMMA = (1.0, 0.0, -1.0, -2.0, 0.5), (1.0, 1.0, -2.0, 0.5, 0.0)


def normed(
    beta: Sequence[float] = BETA, gamma: Sequence[float] = GAMMA, act: nn.Module | None = None
) -> Network:
    """A batch norm with these β and γ before a rectifier."""
    count = len(beta)
    norm = nn.BatchNorm1d(count)
    norm.weight.data, norm.bias.data = torch.tensor(gamma), torch.tensor(beta)
    model = nn.Sequential(nn.Linear(3, count), norm, act or nn.ReLU(), nn.Linear(count, 2))
    return shoal.capture(model.double().eval(), torch.randn(4, 3).double())


def test_the_share_that_is_on() -> None:
    (given,) = norm_inputs(normed()).values()
    assert (1 - share_on(given)).tolist() == pytest.approx(
        [0.158655, 0.5, 0.691462, 0.999968, 0.0], abs=1e-6
    )


def test_what_tlc_keeps() -> None:
    net = normed()
    line = implied_line(net, net.site("2"), norm_inputs(net)["2"], "mask")
    assert line.slope.tolist() == [1, 0, 0, 0, 1]
    assert line.intercept.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("beta", "gamma", "slope", "intercept", "line", "tlc"),
    [
        (1.0, 1.0, 0.841345, 0.241971, 0.0432, 0.0753),  # the identity
        (0.0, 1.0, 0.5, 0.398942, 0.0908, 0.5),  # zero, and so are those that follow
        (-1.0, 2.0, 0.308538, 0.704131, 0.3013, 0.8386),
        (-2.0, 0.5, 0.000032, 0.000067, 1e-6, 1e-6),
    ],
)
def test_line_and_mask_of_a_gaussian(
    beta: float, gamma: float, slope: float, intercept: float, line: float, tlc: float
) -> None:
    """The squared errors are those of the known table; the line is never worse."""
    net = normed([beta], [-gamma])
    (site,) = net.sites
    found = shoal.norm_lines(net)["2"]
    assert float(found.slope) == pytest.approx(slope, abs=1e-6)
    assert float(found.intercept) == pytest.approx(intercept, abs=1e-6)
    ratio = torch.tensor(beta / gamma, dtype=torch.float64)
    on, density = torch.special.ndtr(ratio), torch.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    mean = beta * on + gamma * density
    variance = float((beta**2 + gamma**2) * on + beta * gamma * density - mean**2)
    masked = implied_line(net, site, norm_inputs(net)["2"], "mask")
    tolerance = 6e-5 if line > 1e-5 else 5e-7
    assert found.residual * variance == pytest.approx(line, abs=tolerance)
    assert masked.residual * variance == pytest.approx(tlc, abs=tolerance)
    assert found.residual <= masked.residual


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.GELU(), nn.LeakyReLU(0.2), nn.PReLU(3), nn.SiLU()])
def test_it_is_the_line_that_gaussian_data_would_be_fitted_by(act: nn.Module) -> None:
    """The norm passes what is standard normal, so the data are what the lines assume."""
    net = normed([0.3, -1.0, 2.0], [1.0, 2.0, 0.5], act)
    first = net.get_submodule("0")
    assert isinstance(first, nn.Linear)
    first.weight.data.copy_(torch.eye(3))
    first.bias.data.zero_()
    data = torch.randn(40_000, 3, generator=torch.Generator().manual_seed(0)).double()
    fitted, implied = shoal.fit_lines(net, [data])["2"], shoal.norm_lines(net)["2"]
    torch.testing.assert_close(implied.slope, fitted.slope, atol=0.01, rtol=0)
    torch.testing.assert_close(implied.intercept, fitted.intercept, atol=0.02, rtol=0)
    assert implied.residual == pytest.approx(fitted.residual, abs=0.01)


def test_a_channel_that_never_varies_gives_its_constant() -> None:
    line = shoal.norm_lines(normed([0.5, -0.5], [0.0, 0.0]))["2"]
    assert line.slope.tolist() == [0, 0]
    assert line.intercept.tolist() == pytest.approx([0.5, 0])


def test_a_norm_without_scale_is_standard_and_dropout_may_lie_between() -> None:
    layers = [nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False), nn.Dropout(0.5), nn.ReLU()]
    net = shoal.capture(nn.Sequential(*layers).eval(), torch.randn(4, 3))
    (line,) = shoal.norm_lines(net).values()
    assert line.slope.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    operations = shoal.linearize_(net, [net.sites[0].name], lines=shoal.norm_lines(net))
    assert operations[0].options == {"how": "line"}
    assert norm_inputs(net) == {}


def test_means_and_deviations_are_measured_where_there_is_no_norm() -> None:
    net = shoal.capture(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)).eval(), torch.randn(4, 2))
    z = torch.randn(60, 2) * torch.tensor([1.0, 3.0]) + torch.tensor([-1.0, 5.0])
    given = Gaussian(z.double().mean(0), z.double().std(0, correction=0))
    (line,) = implied_lines(net, loader=z.split(20)).values()
    expected = implied_line(net, net.site("0"), given)
    torch.testing.assert_close(line.slope, expected.slope, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(line.intercept, expected.intercept, rtol=1e-5, atol=1e-6)
    assert implied_lines(net) == {}


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.act = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.layer(x)) + x)


def test_a_rectifier_behind_an_addition_is_refused() -> None:
    net = shoal.capture(Sum().eval(), torch.randn(4, 3))
    assert norm_inputs(net) == {}
    with pytest.raises(ConfigError, match="no rectifier follows a batch norm directly"):
        shoal.norm_lines(net)
    with pytest.raises(ConfigError, match="site 'act' has no rectifier that follows"):
        shoal.norm_lines(net, ["act"])
    with pytest.raises(NameNotFoundError):
        shoal.norm_lines(net, ["actt"])
    line = implied_line(net, net.site("act"), Gaussian(torch.zeros(3).double(), torch.ones(3)))
    assert line.slope.tolist() == pytest.approx([0.5] * 3, abs=1e-6)


@pytest.mark.parametrize("channels", [4, 3])
def test_a_rectifier_of_some_channels_has_the_line_of_each(channels: int) -> None:
    norm = nn.BatchNorm2d(channels)
    norm.weight.data, norm.bias.data = torch.rand(channels) + 0.5, torch.randn(channels)
    model = nn.Sequential(nn.Conv2d(1, channels, 3), norm, nn.ReLU()).double().eval()
    net = shoal.capture(model, torch.randn(2, 1, 5, 5).double())
    (given,) = norm_inputs(net).values()
    whole = implied_line(net, net.site("2"), given)
    on = torch.arange(channels).view(-1, 1, 1) % 2 == 0
    slope = torch.full((channels,), 0.25).double()
    line = Line(slope, torch.ones_like(slope), 1)
    line.fix_rank(4)
    replace_(net, {"2": ByChannel(nn.ReLU(), line, on)})
    found, is_on = implied_line(net, net.site("2"), given), on.flatten()
    torch.testing.assert_close(found.slope, whole.slope.where(is_on, 0.25))
    torch.testing.assert_close(found.intercept, whole.intercept.where(is_on, 1.0))
