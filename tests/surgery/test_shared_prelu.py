"""A PReLU that is called several times keeps its weight exactly while a call is left."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.importance import score
from shoal.merge.format1 import replay_
from shoal.network import Network, capture
from shoal.network.modules import Blend
from shoal.surgery import fit_lines, linearize_
from shoal.surgery.linearize import replace_

CALLS = ("act", "act_1", "act_2")


class Thrice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.act = nn.PReLU(4)
        self.act.weight.data = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.c(self.act(self.b(self.act(self.a(x))))))


class Reference(Thrice):
    """The same with the calls in `gone` left out."""

    def __init__(self, gone: set[str]) -> None:
        super().__init__()
        self.gone = gone

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in zip(CALLS, (self.a, self.b, self.c), strict=True):
            x = layer(x) if name in self.gone else self.act(layer(x))
        return x


def data() -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def captured() -> Network:
    return capture(Thrice(), data())


def slopes(net: Network) -> list[str]:
    return [name for name, p in net.named_parameters() if "act" in name and p.numel() == 4]


@pytest.mark.parametrize("order", list(permutations(CALLS)))
def test_the_weight_stays_while_a_call_is_left(order: tuple[str, ...], captured: Network) -> None:
    net = captured.copy()
    gone: set[str] = set()
    for name in order:
        linearize_(net, [name], how="identity")
        gone.add(name)
        left = [call for call in CALLS if call not in gone]
        assert len(slopes(net)) == (1 if left else 0)
        assert torch.equal(net(data()), Reference(gone)(data()))
        twin = net.copy()
        assert torch.equal(twin(data()), net(data()))
        if left:
            net.zero_grad()
            net(data()).sum().backward()
            assert net.get_parameter(slopes(net)[0]).grad is not None
            assert list(score(net, [data()])) == left


@pytest.mark.parametrize("order", list(permutations(CALLS)))
@pytest.mark.parametrize("how", ["identity", "line"])
def test_replaying_gives_the_same_state(
    order: tuple[str, ...], how: str, captured: Network
) -> None:
    for count in (1, 2, 3):
        net = captured.copy()
        for name in order[:count]:
            linearize_(net, [name], how=how, loader=[data()])
        rebuilt = replay_(captured.copy(), net.plan)
        assert list(rebuilt.state_dict()) == list(net.state_dict())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.25)
        rebuilt.load_state_dict(net.state_dict())
        assert torch.equal(rebuilt(data()), net(data()))


def check_scores(net: Network, inputs: list[Tensor]) -> None:
    """Each site's score is the entropy of its own inputs, not of those of other calls."""
    scores = score(net, [data()])
    assert len(scores) == len(inputs)
    for found, z in zip(scores.values(), inputs, strict=True):
        p = (z > 0).double().mean(0)
        bits = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)) / math.log(2)
        assert found == pytest.approx(bits.mean().item(), abs=1e-12)


def test_each_call_is_scored_and_fitted_by_its_own_inputs(captured: Network) -> None:
    model = Thrice()
    inputs = []
    handle = model.act.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(data())
    handle.remove()
    check_scores(captured, inputs)
    for line, z in zip(fit_lines(captured, [data()]).values(), inputs, strict=True):
        r = torch.nn.functional.prelu(z, model.act.weight.detach())
        assert line.slope[0].item() == pytest.approx(
            np.polyfit(z[:, 0].double().numpy(), r[:, 0].double().numpy(), 1)[0], abs=1e-6
        )


def test_one_module_at_two_places_is_two_sites() -> None:
    torch.manual_seed(0)
    act = nn.PReLU(4)
    first, second = nn.Sequential(nn.Linear(4, 4), act), nn.Sequential(nn.Linear(4, 4), act)
    net = capture(nn.Sequential(first, second), data())
    with torch.no_grad():
        z = first[0](data())
        check_scores(net, [z, second[0](act(z))])
        linearize_(net, [net.sites[0].name], how="identity")
        assert torch.equal(net(data()), act(second[0](z)))


@pytest.mark.parametrize("order", list(permutations(CALLS)))
def test_calls_can_be_blended_linearized_and_put_back(
    order: tuple[str, ...], captured: Network, tmp_path: Path
) -> None:
    net = captured.copy()
    replace_(net, {name: Blend(net.get_submodule(name)) for name in order})
    assert torch.equal(net(data()), captured(data()))
    linearize_(net, [order[0]], how="identity")
    rest = {name: net.get_submodule(name).rectifier for name in order[1:]}
    replace_(net, rest)  # type: ignore[arg-type]
    with torch.no_grad():
        expected = Reference({order[0]})(data())
    assert torch.equal(net(data()), expected)
    shoal.save(net, tmp_path)
    for same in (net, net.copy(), shoal.load(tmp_path)):
        assert len(slopes(same)) == 1  # one weight, of both calls
        with torch.no_grad():
            same.get_parameter(slopes(same)[0]).zero_()
            found = same(data())
            assert not torch.equal(found, expected)
            for name in order[1:]:
                same.get_submodule(name).register_forward_hook(
                    lambda _, z, y: torch.testing.assert_close(y, z[0].relu())
                )
            same(data())


def test_a_call_whose_owner_something_else_replaced_owns_the_weight(captured: Network) -> None:
    net = captured.copy()
    others = {name: Blend(net.get_submodule(name)) for name in CALLS[1:]}
    replace_(net, {CALLS[0]: nn.GELU(), **others})
    assert len(slopes(net)) == 1
    assert torch.equal(net.copy()(data()), net(data()))
