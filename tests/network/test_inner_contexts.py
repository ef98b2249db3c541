"""What a model computes without gradients, outside autocast or under a condition stays so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call, captured, kinds, same
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import shoal
from shoal.errors import ConfigError
from shoal.network import Network, capture
from shoal.training import fit


def full_precision(self: nn.Module, x: Tensor) -> Tensor:
    x = self.a(x)
    with torch.autocast("cpu", enabled=False):
        y = F.relu(self.b(x.float()))
    return self.c(y)


def half_frozen(self: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = F.relu(self.b(self.a(x)))
        mask = (y > 0).float()
    return self.c(y * mask)


def model(forward: object) -> nn.Module:
    torch.manual_seed(0)
    return Call(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))  # type: ignore


def images() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("forward", [full_precision, half_frozen])
def test_sites_inside_a_context_are_found_and_nothing_changes(forward: object) -> None:
    network = captured(model(forward), images())
    assert kinds(network) == ["relu"]
    assert not network.opaque
    assert isinstance(network.get_submodule("b"), nn.Linear)


def test_full_precision_inside_autocast() -> None:
    original = model(full_precision).eval()
    network = capture(original, images()).copy()
    with torch.autocast("cpu", torch.bfloat16):
        assert same(network(images()), original(images()))
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_no_gradient_reaches_what_is_computed_without() -> None:
    network = capture(model(half_frozen), images()).copy()
    network(images()).sum().backward()
    assert network.get_parameter("a.weight").grad is None
    assert network.get_parameter("c.weight").grad is not None


def test_a_gate_without_gradients_is_no_part_of_a_written_rectifier() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        z = self.a(x)
        with torch.no_grad():
            gate = torch.sigmoid(z)
        return self.c(z * gate * 1.0)

    network = captured(model(forward), images())
    assert kinds(network) == []


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("broken")


@pytest.mark.parametrize("forward", [full_precision, half_frozen])
def test_an_error_inside_a_context_leaves_no_mode_behind(forward: object) -> None:
    network: Network = capture(model(forward), images()).copy()
    network.replace_module("b", Raising())
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="broken"):
            network(images())
        assert torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == 1  # or weights would be cast once for ever
    torch.autocast_decrement_nesting()


def test_copies_and_exports_keep_the_contexts() -> None:
    network = capture(model(half_frozen), images()).copy().copy().eval()
    program = torch.export.export(network, (images(),), strict=False)
    assert same(program.module()(images()), network(images()))
    assert same(torch.compile(network, backend="eager")(images()), network(images()))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_control_flow_of_torch_is_kept_and_named() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        z = self.a(x)
        return self.c(torch.cond(z.sum() > 0, torch.sin, torch.cos, (z,)))

    network = captured(model(forward), images(), train=False)
    (opaque,) = network.opaque
    assert "control flow" in opaque.reason
    x = -5 * images()
    original = model(forward).eval()
    assert same(network.eval()(x), original(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_pass_activation_checkpoints(reentrant: bool) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        z = checkpoint(lambda z: F.relu(self.b(z)) + z, self.a(x), use_reentrant=reentrant)
        return self.c(checkpoint_sequential([nn.ReLU()], 1, z, use_reentrant=reentrant))

    model = Call(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 3))
    network = capture(model, torch.randn(2, 4)).copy()
    x = torch.randn(5, 4)
    for module in (model, network):
        module(x).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in expected.values())
    assert same({name: p.grad for name, p in network.named_parameters()}, expected)
    assert len(network.sites) == 2


@pytest.mark.long
def test_a_forward_pass_without_gradients_is_said_to_be_one() -> None:
    class Deployed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return x + self.b(F.relu(self.a(x)))  # type: ignore[no-any-return]

    data = [(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))]
    network = capture(Deployed(), data[0][0])
    assert len(shoal.score(network, data)) == 1
    for use in (
        lambda: fit(network.copy(), data, epochs=1),
        lambda: shoal.score(network, data, "taylor"),
        lambda: shoal.compress(Deployed(), data, data, epochs=1, max_drop=100),
    ):
        with pytest.raises(ConfigError, match=r"forward pass switches gradients off") as caught:
            use()
        assert "\n" not in str(caught.value)
