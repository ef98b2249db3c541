"""The cost model: so much for an operation, so much for a multiply-accumulate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shoal
from shoal.search.work import Work, WorkModel

WORKS = [Work(10, 1_000_000), Work(9, 1_000_000), Work(12, 400_000), Work(7, 900_000)]


def test_work_is_what_is_called_and_multiplied() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(2, 4)
    assert Work.of(shoal.capture(net.eval(), x), x) == Work(3, 4 * 8 + 8 * 3)


def test_times_that_follow_the_model_give_it_back() -> None:
    times = [0.02 * work.operations + 3e-6 * work.macs for work in WORKS]
    model = WorkModel.fit(WORKS, times)
    assert model.per_operation == pytest.approx(0.02)
    assert model.per_mac == pytest.approx(3e-6)
    assert model.ms(Work(5, 100_000)) == pytest.approx(0.4)


@pytest.mark.parametrize("one", ["per_operation", "per_mac"])
def test_nothing_costs_less_than_nothing(one: str) -> None:
    # Times that fall with one of the two: all is then laid to the other.
    sign = {"per_operation": (1.0, -3e-7), "per_mac": (-0.01, 1e-6)}[one]
    times = [sign[0] * work.operations + sign[1] * work.macs for work in WORKS]
    model = WorkModel.fit(WORKS, times)
    assert getattr(model, one) > 0.0
    assert min(model.per_operation, model.per_mac) == 0.0


def test_one_network_is_enough() -> None:
    assert WorkModel.fit([Work(10, 500)], [2.0]).ms(Work(10, 500)) == pytest.approx(2.0)
    assert WorkModel.fit([Work(10, 0)], [2.0]).ms(Work(5, 0)) == pytest.approx(1.0)
