"""SNL: the numbers of its gates; a budget of evaluations is met, and what is left is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import shoal
import small_runs
from shoal.measure import rectifier_evaluations, rectifier_stages
from shoal.models import resnet18_cifar
from shoal.network.modules import Blend, ByChannel, Line
from shoal.search.gates import GateSearch, count, grow, within
from small_runs import SITES, captured, run

ALL = 408  # of the small network: 128, 128, 128, 24


def test_the_gated_rectifier() -> None:
    gates = torch.tensor([1.0, 0.3, 0.3])
    out = Blend(nn.ReLU(), 1 - gates)(torch.tensor([-2.0, -2.0, 3.0]))
    torch.testing.assert_close(out, torch.tensor([0.0, -1.4, 3.0]))


def test_what_is_open_counts() -> None:
    gates = {"a": [1.0, 0.3, 0.009, -0.5]}
    assert count(gates, {"a": [1.0] * 4}) == 2
    assert count(gates, {"a": [5.0, 7.0, 1.0, 1.0]}) == 12


KAPPA = {"kappa": 1e-5, "growth": 1.1, "wait": 5, "lr": 1e-3}


def test_the_penalty_is_the_sum_of_the_gates_magnitudes() -> None:
    net = shoal.capture(nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4))
    lab = small_runs.lab(net, [], [])
    (name,) = counts = lab.evaluations()
    lab.replace([name], lambda site: lab.blend(site, by_channel=True))
    lab.slopes()[name].data = 1 - torch.tensor([1.0, 0.3, 0.009, -0.5])
    search = GateSearch(lab, counts, 2, **KAPPA)
    assert search.penalty(lab.network, {}).item() == pytest.approx(1e-5 * 1.809)
    search.after_step(lab.network)  # two are open, which meets the budget
    assert search.met
    assert search.opened(lab.network) == {name: [True, True, False, False]}


def test_kappa_grows_while_the_count_sets_no_new_low() -> None:
    memory = {"kappa": 1e-5, "low": 100, "epoch": 0}
    for found in (100, 99, 99, 99, 99, 99, 98, 98, 97, 97):
        grow(memory, found, 1.1, 5)
    assert memory["kappa"] == pytest.approx(1e-5 * 1.331)
    assert memory["low"] == 97


def test_the_smallest_gates_go_until_the_budget_is_met_and_no_longer() -> None:
    gates = {"a": [0.5, 0.1], "b": [0.2]}
    costs = {"a": [4.0, 4.0], "b": [10.0]}
    assert within(gates, costs, 18) == {"a": [True, True], "b": [True]}
    assert within(gates, costs, 17) == {"a": [True, False], "b": [True]}
    assert within(gates, costs, 4) == {"a": [True, False], "b": [False]}
    assert within(gates, costs, 0) == {"a": [False, False], "b": [False]}
    shut = {"a": [0.0, 0.0], "b": [0.0]}  # all at once, as clamped gates are
    assert within(shut, costs, 14) == {"a": [False, True], "b": [True]}


@pytest.mark.long
def test_whole_sites_meet_the_budgets_of_the_papers() -> None:
    """ResNet-18 without pooling, as SNL counts it: what is left are its last sites."""
    model = resnet18_cifar()
    model.maxpool, model.relu = nn.Identity(), nn.Identity()
    net = shoal.capture(model.eval(), torch.randn(2, 3, 32, 32))
    evaluations = rectifier_evaluations(net)
    assert sum(evaluations.values()) == 491_520
    stages = [list(stage.sites) for stage in rectifier_stages(net)]
    costs = {name: [float(n)] for name, n in evaluations.items()}
    gates = {name: [0.05 * (1 + place)] for place, name in enumerate(evaluations)}
    for budget, left in (
        (24_576, stages[3][1:]),
        (32_768, stages[3]),
        (49_152, stages[2][3:] + stages[3]),
        (98_304, stages[2] + stages[3]),
        (229_376, stages[1] + stages[2] + stages[3]),
    ):
        opened = within(gates, costs, budget)
        assert [name for name, is_open in opened.items() if all(is_open)] == left
        less = net.copy()
        shoal.linearize_(less, [name for name in costs if name not in left], "identity")
        assert sum(rectifier_evaluations(less).values()) == budget


def test_a_rectifier_by_channel() -> None:
    on = torch.tensor([True, False]).view(2, 1, 1)
    line = Line(torch.tensor([9.0, 2.0]), torch.tensor([9.0, 1.0]), 1)
    module = ByChannel(nn.ReLU(), line, on)
    z = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(module(z)[:, 0], z[:, 0].relu())
    torch.testing.assert_close(module(z)[:, 1], 2 * z[:, 1] + 1)
    again = ByChannel(module, nn.Identity(), ~on)
    assert not again.kept.any()
    torch.testing.assert_close(again(z)[:, 0], z[:, 0])
    torch.testing.assert_close(again(z)[:, 1], module(z)[:, 1])


def test_channels_count_and_stay_through_saving_merging_and_a_runtime(tmp_path: Path) -> None:
    net = captured().copy()
    on = torch.arange(8) < 3
    line = Line(torch.rand(8), torch.rand(8), 1)
    site = net.site("relu")
    assert site.channel_shape == (8, 1, 1)
    assert net.site("last").channel_shape == (24,)
    mixed = ByChannel(net.get_submodule("relu"), line, on.view(8, 1, 1))
    shoal.surgery.replace_(net, {"relu": mixed})
    assert net.site("relu").linearized is None
    assert rectifier_evaluations(net) == {"relu": 48, "act": 128, "relu_1": 128, "last": 24}
    images = torch.randn(4, 1, 8, 8)
    before = net.eval()(images)
    shoal.save(net, tmp_path / "net")
    loaded = shoal.load(tmp_path / "net").eval()
    assert torch.equal(loaded(images), before)
    shoal.merge_(loaded, policy="always")
    torch.testing.assert_close(loaded(images), before, rtol=1e-4, atol=1e-5)
    assert rectifier_evaluations(loaded) == rectifier_evaluations(net)
    shoal.export(loaded, tmp_path / "net.onnx", images)  # compares the answers


@pytest.mark.parametrize("unit", ["site", "channel"])
@pytest.mark.parametrize("how", ["line", "identity"])
def test_the_budget_is_met(unit: str, how: str) -> None:
    given = {"max_relus": 200, "search_epochs": 4, "unit": unit, "how": how}
    result = run(method="snl", **given, epochs=1, recipe={"distill": 0.5, "precision": "fp32"})
    left = rectifier_evaluations(result.model)
    assert sum(left.values()) <= 200
    assert result.final.relus == sum(left.values())
    assert result.dense.relus == ALL
    if unit == "channel":  # no more than asked for, but for a channel of 16 evaluations
        assert sum(left.values()) > 200 - 16
    assert not any(isinstance(module, Blend) for module in result.model.modules())
    assert {site.linearized for site in result.model.sites} <= {how, None}
    assert sum(rectifier_evaluations(result.merged).values()) == result.final.relus
    note = f"{result.final.relus} of {ALL} rectifier evaluations left, 200 asked for"
    assert note in result.steps[1].notes
    assert result.removed == len(SITES) - result.model.sites_left


def test_where_the_search_does_not_get_there_the_smallest_gates_go() -> None:
    result = run(method="snl", gate_lr=1e-9)
    assert result.final.relus is not None
    assert result.final.relus <= ALL // 2
    assert any("ended above the budget" in note for note in result.steps[1].notes)


def test_the_search_ends_with_the_epoch_that_meets_the_budget() -> None:
    result = run(method="snl", gate_lr=0.5, kappa=10.0, search_epochs=30)
    assert result.steps[1].epochs < 30


def test_nothing_is_done_within_the_budget() -> None:
    result = run(method="snl", max_relus=ALL)
    assert len(result.steps) == 1
    assert result.stopped == "408 rectifier evaluations are left, of 408 asked for"


def test_a_network_with_few_channels_left_can_lose_more() -> None:
    first = run(method="snl", unit="channel", max_relus=300, search_epochs=2)
    second = run(model=first.model, method="snl", unit="channel", max_relus=100, search_epochs=2)
    assert second.dense.relus == first.final.relus
    assert sum(rectifier_evaluations(second.model).values()) <= 100


def test_it_needs_epochs_and_known_recipes() -> None:
    with pytest.raises(shoal.ShoalError, match="raise epochs"):
        run(method="snl", epochs=0)
    with pytest.raises(shoal.ShoalError, match="snl_serch"):
        run(method="snl", search_recipe="snl_serch")
