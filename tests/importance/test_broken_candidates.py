"""A removal that makes the network's answers NaN goes last, and the others are scored."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shoal
from shoal.errors import TrainingError
from shoal.importance.candidates import relative_to_stage
from shoal.importance.replaced import SuccessiveHalving


class Logarithm(nn.Module):
    """Its first rectifier keeps a logarithm's argument above 0; its second one can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.log(F.relu(self.a(x) * 9) + 1e-3)
        return self.c(F.gelu(self.b(x)))


def network() -> shoal.Network:
    torch.manual_seed(0)
    return shoal.capture(Logarithm().eval(), torch.randn(2, 4))


def data(batches: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(64, 4, generator=generator), torch.arange(64) % 3) for _ in range(batches)]


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("line_loss", {"how": "identity"}),
        ("line_loss", {"how": "identity", "keep": None}),
        ("lesion", {"place": "site"}),
        ("kl", {"place": "site"}),
        ("cka", {"place": "site"}),
    ],
)
def test_the_broken_candidate_scores_infinity(criterion: str, options: dict[str, object]) -> None:
    scores = shoal.score(network(), data(), criterion, **options)
    assert scores["relu"] == math.inf
    assert math.isfinite(scores["gelu"])
    assert scores.worth_removing() == ["gelu"]
    assert not any(math.isnan(v) for own in scores.details.values() for v in own.values())


@pytest.mark.parametrize("criterion", ["line_loss", "lesion", "kl", "cka"])
def test_a_broken_network_is_told_as_such(criterion: str) -> None:
    net = network().copy()
    net.get_parameter("b.weight").data[0] = math.nan
    options = {"how": "identity"} if criterion == "line_loss" else {"place": "site"}
    with pytest.raises(TrainingError, match=r"not finite|NaN"):
        shoal.score(net, data(), criterion, **options)


def test_a_broken_block_does_not_hide_the_order_of_its_stage() -> None:
    net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
    first, second = [block.name for block in net.blocks if block.name.startswith("layer1")][:2]
    found = relative_to_stage({first: math.inf, second: 2.0}, net)
    assert found == {first: math.inf, second: 1.0}


def test_in_a_race_infinite_costs_drop_out_first() -> None:
    race = SuccessiveHalving([1.0, 2.0, 1.0, 1.0], [""] * 4, keep=2)
    costs = torch.tensor([math.inf, 3.0, math.inf, 1.0], dtype=torch.float64)
    variances = torch.zeros(4, dtype=torch.float64)
    race.drop_out(costs, variances, 100, None)
    assert race.running == [1, 3]
    assert race.costs_of_all(costs, variances).tolist() == [math.inf, 3.0, math.inf, 1.0]


def test_a_race_of_infinite_costs_alone_ends_without_nan() -> None:
    race = SuccessiveHalving([1.0, 1.0, 1.0], [""] * 3, keep=1)
    costs = torch.full((3,), math.inf, dtype=torch.float64)
    race.drop_out(costs, torch.zeros(3, dtype=torch.float64), 100, None)
    assert race.costs_of_all(costs, torch.zeros(3)).tolist() == [math.inf] * 3
