"""Linearizing puts a line or the identity where the rectifier was, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, NameNotFoundError, PlanError, ShoalError, TrainingError
from shoal.merge.format1 import replay_
from shoal.merge.loading import load
from shoal.merge.merge import merge_
from shoal.network import Network, Operation, Plan, capture
from shoal.network.modules import Line
from shoal.network.saving import save
from shoal.surgery import fit_lines, linearize_


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.GELU(),
        nn.Flatten(), nn.Linear(20, 6), nn.ReLU6(),
    )  # fmt: skip


def data(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


CAPTURED = capture(model(), data(2))


def network() -> Network:
    return CAPTURED.copy()


def test_the_identity_passes_the_input() -> None:
    net = network().eval()
    assert linearize_(net, "2", how="identity") == net.plan.operations
    bare = model().eval()
    bare[2] = nn.Identity()
    assert torch.equal(net(data()), bare(data()))
    assert net.site("2").linearized == "identity"
    assert set(net.state_dict()) == set(model().state_dict())


def test_the_line_maps_each_channel() -> None:
    net = network().eval()
    line = fit_lines(net, [data()])["2"]
    linearize_(net, ["2"], loader=[data()])
    bare = model().eval()
    a, b = (v.float()[:, None, None] for v in (line.slope, line.intercept))
    expected = bare[3:](a * bare[:2](data()) + b)
    assert torch.allclose(net(data()), expected, atol=1e-6)
    assert net.site("2").linearized == "line"
    assert net.site("2").kind == "relu"


def test_only_lines_add_to_the_state() -> None:
    net = network()
    before = set(net.state_dict())
    linearize_(net, ["2", "7"], loader=[data()])
    linearize_(net, ["4"], how="identity")
    lines = {f"{site}.{part}" for site in ("2", "7") for part in ("slope", "intercept")}
    assert set(net.state_dict()) - before == lines
    assert [site.linearized for site in net.sites] == ["line", "identity", "line"]


def test_the_plan_records_what_was_done() -> None:
    net = network()
    linearize_(net, ["4", "2"], loader=[data()])
    linearize_(net, "7", how="identity")
    linearize_(net, [], how="identity")
    assert net.plan.to_dict()["operations"] == [
        {"kind": "linearize", "names": ["4", "2"], "options": {"how": "line"}},
        {"kind": "linearize", "names": ["7"], "options": {"how": "identity"}},
    ]


def test_a_linearized_network_learns_its_lines() -> None:
    net = network().train()
    linearize_(net, ["2", "4"], loader=[data()])
    assert net.get_submodule("2").training
    before = {k: v.clone() for k, v in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(data()).square().mean().backward()
    for name in ("2", "4"):
        for part in ("slope", "intercept"):
            gradient = net.get_parameter(f"{name}.{part}").grad
            assert gradient is not None
            assert gradient.abs().sum() > 0
    optimizer.step()
    assert not torch.equal(net.state_dict()["2.slope"], before["2.slope"])


def test_a_copy_has_lines_of_its_own() -> None:
    net = network().eval()
    linearize_(net, ["2"], loader=[data()])
    twin = net.copy()
    assert torch.equal(twin(data()), net(data()))
    with torch.no_grad():
        twin.get_parameter("2.slope").zero_()
    assert net.get_parameter("2.slope").abs().sum() > 0


def test_lines_fitted_before_are_copied() -> None:
    net, other = network(), network()
    lines = fit_lines(net, [data()])
    for dtype in (torch.float32, torch.float64):
        linearize_(net.to(dtype), ["2"], lines=lines)
        linearize_(other.to(dtype), ["2"], lines=lines)
        with torch.no_grad():
            net.get_parameter("2.slope").zero_()
        assert lines["2"].slope.abs().sum() > 0
        assert other.get_parameter("2.slope").abs().sum() > 0
        net, other = network(), network()


def test_sites_without_a_given_line_are_fitted() -> None:
    net = network()
    fitted = fit_lines(net, [data()])
    given = replace(fitted["2"], slope=fitted["2"].slope + 1)
    linearize_(net, ["2", "4"], loader=[data()], lines={"2": given})
    for site, line in (("2", given), ("4", fitted["4"])):
        assert torch.equal(net.get_parameter(f"{site}.slope"), line.slope.float())
    assert net.plan.names("linearize") == ["2", "4"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_lines_have_the_type_of_the_network(dtype: torch.dtype) -> None:
    net = network().to(dtype).eval()
    linearize_(net, ["2", "4"], loader=[data().to(dtype)])
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert net(data().to(dtype)).dtype == dtype


def test_a_better_fit_than_the_identity() -> None:
    base = network().eval()
    expected = base(data())
    losses = {}
    for how in ("line", "identity"):
        net = base.copy()
        linearize_(net, ["4"], how=how, loader=[data()])
        losses[how] = (net(data()) - expected).square().mean().item()
    assert losses["line"] < losses["identity"]


def test_replaying_the_plan_rebuilds_the_network() -> None:
    net = network().eval()
    linearize_(net, ["4"], how="identity")
    linearize_(net, ["2", "7"], loader=[data()])
    plan = Plan.from_dict(net.plan.to_dict())
    rebuilt = replay_(network().eval(), plan)
    rebuilt.load_state_dict(net.state_dict())
    assert torch.equal(rebuilt(data()), net(data()))
    assert rebuilt.plan.operations == net.plan.operations
    assert rebuilt.sites == net.sites


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Operation("fold", ("2",)), "does not know"),
        (Operation("linearize", ("9",), {"how": "line"}), "does not fit this model: unknown site"),
        (Operation("linearize", ("2",), {"how": "curve"}), "linearizes by 'curve'"),
        (Operation("linearize", ("2",)), "linearizes by 'None'"),
        (Operation("linearize", ("2", "2"), {"how": "line"}), "linearizes site '2' twice"),
    ],
)
def test_a_plan_that_does_not_fit_is_an_error(operation: Operation, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        replay_(network(), Plan(operations=[operation]))


def wrong_lines(net: Network) -> None:
    lines = fit_lines(net, [data()])
    linearize_(net, ["2", "4"], lines={**lines, "4": lines["2"]})


def too_few_lines(net: Network) -> None:
    linearize_(net, ["2", "4"], lines={"2": fit_lines(net, [data()])["2"]})


REQUESTS = {
    "unknown site": (lambda n: linearize_(n, ["4", "22"], "identity"), NameNotFoundError, "'22'"),
    "twice": (lambda n: linearize_(n, ["4", "4"], "identity"), ConfigError, "named twice"),
    "already": (lambda n: linearize_(n, ["2", "7"], "identity"), ConfigError, "'7' is linearized"),
    "no data": (lambda n: linearize_(n, ["2"]), ConfigError, "give loader="),
    "no data for one": (too_few_lines, ConfigError, "site '4'.*give loader="),
    "how": (lambda n: linearize_(n, ["2"], "linear", [data()]), ConfigError, "how is 'linear'"),
    "wrong line": (wrong_lines, ConfigError, r"the line of site '4' has the shape \[4\].*5 chan"),
    "broken data": (
        lambda n: linearize_(n, ["2", "4"], loader=[data() / 0]), TrainingError, "not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("request_name", REQUESTS)
def test_an_error_leaves_the_network_as_it_was(request_name: str) -> None:
    call, error, message = REQUESTS[request_name]
    net = network().eval()
    linearize_(net, ["7"], how="identity")
    before = net.copy()
    with pytest.raises(error, match=message) as caught:
        call(net)  # type: ignore[no-untyped-call]
    assert isinstance(caught.value, ShoalError)
    assert "\n" not in str(caught.value)
    assert net.plan.operations == before.plan.operations
    assert net.sites == before.sites
    assert torch.equal(net(data()), before(data()))


def test_a_line_is_what_stands_at_the_site() -> None:
    net = network()
    linearize_(net, ["7"], loader=[data()])
    assert isinstance(net.get_submodule("7"), Line)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_calls_of_a_block_that_a_model_has_three_times_are_sites_of_their_own(
    gone: int, tmp_path: Path
) -> None:
    class Thrice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = nn.Sequential(nn.Linear(4, 4), nn.GELU())
            self.blocks, self.fc = nn.ModuleList([block, block, block]), nn.Linear(4, 3)

        def forward(self, x: Tensor, without: int | None = None) -> Tensor:
            for call, (layer, act) in enumerate(self.blocks):
                x = layer(x) if call == without else act(layer(x))
            return self.fc(x)

    torch.manual_seed(0)
    thrice, x = Thrice().eval(), torch.randn(16, 4)
    net = capture(thrice, x)
    chosen = [site.name for site in net.sites][gone]
    linearize_(net, [chosen], how="identity")
    assert [site.linearized for site in net.sites].count(None) == net.sites_left == 2
    assert torch.equal(net(x), thrice(x, without=gone))
    again = load(save(net, tmp_path))
    assert again.sites == net.sites
    assert torch.equal(again(x), net(x))
    report = merge_(net, policy="always")
    assert (report.depth_before, report.depth_after, net.sites_left) == (4, 3, 2)
    torch.testing.assert_close(net(x), thrice(x, without=gone))
