"""Every way to write a rectifier is a site, and computes and learns as it did, to the bit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call, captured, kinds, names, reloaded, same
from torch import Tensor, nn

from shoal.network import capture

# Ties and ends: where the ways to write a rectifier differ in their gradients.
POINTS = (-7.0, -3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0, 7.0, 20.0, 25.0)


def points() -> Tensor:
    return torch.tensor([POINTS, POINTS[::-1]])


def function_model(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Call(lambda self, x: function(x))


FUNCTIONS = {
    "F.relu": (F.relu, "relu"),
    "F.relu_": (lambda x: F.relu_(x * 1.0), "relu"),
    "torch.relu": (torch.relu, "relu"),
    "x.relu()": (lambda x: x.relu(), "relu"),
    "clamp(min=0)": (lambda x: x.clamp(min=0), "relu"),
    "clamp_min(0.0)": (lambda x: x.clamp_min(0.0), "relu"),
    "threshold": (lambda x: F.threshold(x, 0, 0), "relu"),
    "maximum": (lambda x: torch.maximum(x, torch.zeros_like(x)), "relu"),
    "maximum, zero first": (lambda x: torch.maximum(torch.zeros_like(x), x), "relu"),
    "max": (lambda x: torch.max(x, torch.zeros(x.shape)), "relu"),
    "maximum of a scalar": (lambda x: torch.maximum(x, torch.tensor(0.0)), "relu"),
    "F.relu6": (F.relu6, "relu6"),
    "clamp(0, 6)": (lambda x: x.clamp(0, 6), "relu6"),
    "F.hardtanh(0, 6)": (lambda x: F.hardtanh(x, 0.0, 6.0), "relu6"),
    "F.hardtanh(0, 1)": (lambda x: F.hardtanh(x, 0.0, 1.0), "hardtanh"),
    "clamp(0, 4)": (lambda x: x.clamp(0, 4), "hardtanh"),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.2), "leaky_relu"),
    "F.rrelu": (F.rrelu, "rrelu"),
    "F.elu": (lambda x: F.elu(x, 0.7), "elu"),
    "F.selu": (F.selu, "selu"),
    "F.celu": (lambda x: F.celu(x, 1.3), "celu"),
    "F.gelu": (F.gelu, "gelu"),
    "F.gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
    "x·sigmoid(1.702x)": (lambda x: x * torch.sigmoid(1.702 * x), "gelu"),
    "F.silu": (F.silu, "silu"),
    "x·sigmoid(x)": (lambda x: x * torch.sigmoid(x), "silu"),
    "sigmoid(x)·x": (lambda x: x.sigmoid() * x, "silu"),
    "F.hardswish": (F.hardswish, "hardswish"),
    "F.mish": (F.mish, "mish"),
    "F.softplus": (lambda x: F.softplus(x, beta=2), "softplus"),
    "clip(0, 6)": (lambda x: torch.clip(x, 0, 6), "relu6"),
}

WRITTEN = {
    "x·(x > 0)": (lambda x: x * (x > 0), "relu"),
    "x·(x > 0).float()": (lambda x: x * (x > 0).float(), "relu"),
    "(x > 0).type_as(x)·x": (lambda x: (x > 0).type_as(x) * x, "relu"),
    "where, a number": (lambda x: torch.where(x > 0, x, 0.0), "relu"),
    "where, zeros": (lambda x: torch.where(x > 0, x, torch.zeros_like(x)), "relu"),
    "where, a tensor": (lambda x: torch.where(x > 0, x, torch.tensor(0.0)), "relu"),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0), "relu"),
    "x[x < 0] = 0": (lambda x: _assigned(x.clone()), "relu"),
    "x[x < 0] *= 0.1": (lambda x: _scaled(x.clone()), "leaky_relu"),
    "x[x < 0] = exp(x[x < 0]) - 1": (lambda x: _bent(x.clone()), "elu"),
    "positive entries into zeros": (lambda x: _picked(x, torch.zeros_like(x)), "relu"),
    "masked_scatter of masked_select": (
        lambda x: x.masked_scatter(x < 0, x.masked_select(x < 0) * 0.1),
        "leaky_relu",
    ),
    "masked_scatter of zeros": (lambda x: x.masked_scatter(x < 0, torch.zeros_like(x)), "relu"),
    "ones, picked, into zeros": (
        lambda x: x * torch.zeros_like(x).masked_scatter(x > 0, torch.ones_like(x)[x > 0]),
        "relu",
    ),
    "x · a mask of assigned ones": (lambda x: x * _ones(x), "relu"),
    "(x + |x|) / 2": (lambda x: (x + x.abs()) / 2, "relu"),
    "clamps in a row": (lambda x: x.clamp(min=0).clamp(max=6), "relu6"),
    "minimum of maximum": (
        lambda x: torch.minimum(torch.maximum(x, torch.tensor(0.0)), torch.tensor(4.0)),
        "hardtanh",
    ),
    "max(x, x / 5)": (lambda x: torch.max(x, 0.2 * x), "leaky_relu"),
    "where, a slope": (lambda x: torch.where(x >= 0, x, 0.1 * x), "leaky_relu"),
    "relu(x) - relu(-x) / 10": (lambda x: F.relu(x) - 0.1 * F.relu(-x), "leaky_relu"),
    "x·relu6(x + 3) / 6": (lambda x: x * F.relu6(x + 3) / 6, "hardswish"),
    "x·(relu6(x + 3) / 6)": (lambda x: x * (F.relu6(x + 3) / 6), "hardswish"),
    "clamp(x + 3)·x / 6": (lambda x: torch.clamp(x + 3, 0, 6) * x * (1 / 6), "hardswish"),
    "x·hardsigmoid(x)": (lambda x: x * F.hardsigmoid(x), "hardswish"),
    "x / (1 + exp(-x))": (lambda x: x / (1 + torch.exp(-x)), "silu"),
    "x·expit(x)": (lambda x: x * torch.special.expit(x), "silu"),
    "x·ndtr(x)": (lambda x: x * torch.special.ndtr(x), "gelu"),
    "GELU by erf": (lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), "gelu"),
    "GELU by tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu",
    ),
    "x·sigmoid(2x)": (lambda x: x * torch.sigmoid(2 * x), "silu"),
    "x·tanh(softplus(x))": (lambda x: x * torch.tanh(F.softplus(x)), "mish"),
    "log(1 + exp(x))": (lambda x: torch.log(1 + torch.exp(x)), "softplus"),
    "x·tanh(exp(x))": (lambda x: x * torch.tanh(torch.exp(x)), "custom"),
    "squareplus": (lambda x: (x + torch.sqrt(x * x + 4)) / 2, "custom"),
}


def _assigned(x: Tensor) -> Tensor:
    x[x < 0] = 0
    return x


def _scaled(x: Tensor) -> Tensor:
    x[x < 0] *= 0.1
    return x


def _bent(x: Tensor) -> Tensor:
    below = x < 0
    x[below] = torch.exp(x[below]) - 1
    return x


def _picked(x: Tensor, into: Tensor) -> Tensor:
    into[x > 0] = x[x > 0]
    return into


def _ones(x: Tensor) -> Tensor:
    mask = torch.zeros_like(x)
    mask[x > 0] = 1
    return mask


def _exchanged(x: Tensor) -> Tensor:
    x[x < 0] = x[x < 0].flip(0)
    return x


MODULES = {
    "ReLU": nn.ReLU(), "ReLU in place": nn.ReLU(inplace=True), "ReLU6": nn.ReLU6(inplace=True),
    "LeakyReLU": nn.LeakyReLU(0.3), "RReLU": nn.RReLU(), "ELU": nn.ELU(0.5),
    "SELU": nn.SELU(), "CELU": nn.CELU(2.0), "GELU": nn.GELU(), "GELU tanh": nn.GELU("tanh"),
    "SiLU": nn.SiLU(inplace=True), "Hardswish": nn.Hardswish(), "Mish": nn.Mish(inplace=True),
    "Softplus": nn.Softplus(), "Hardtanh": nn.Hardtanh(0.0, 6.0), "Threshold": nn.Threshold(0, 0),
}  # fmt: skip

NOT_RECTIFIERS = {
    "hardtanh(-1, 1)": F.hardtanh,
    "clamp(-1, 1)": lambda x: x.clamp(-1, 1),
    "clamp(max=0)": lambda x: x.clamp(max=0),
    "clamp(min=1e-6)": lambda x: x.clamp(min=1e-6),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "hard sigmoid as a clamp": lambda x: (x + 3).clamp(0, 6) / 6,
    "hard sigmoid as relu6": lambda x: F.relu6(x + 3) / 6,
    "hard sigmoid as a product": lambda x: F.relu6(x + 3) * (1 / 6),
    "threshold at 1": lambda x: F.threshold(x, 1.0, 0.0),
    "maximum of ones": lambda x: torch.maximum(x, torch.ones_like(x)),
    "another's gate": lambda x: x * torch.sigmoid(x.flip(0)),
    "broadcasting maximum": lambda x: torch.maximum(x[:, :1], torch.zeros(12)),
    "x·tanh(x)": lambda x: x * torch.tanh(x),
    "|x|": torch.abs,
    "sin": torch.sin,
    "softsign": F.softsign,
    "log_sigmoid": F.logsigmoid,
    "x·(x > 1)": lambda x: x * (x > 1),
    "x·(y > 0)": lambda x: x * (x.flip(0) > 0),
    "exp": lambda x: torch.exp(x - 3),
    "10000 to the power x / 32": lambda x: 10000 ** (x / 32),
    "x²": lambda x: x * x,
    "a line": lambda x: (x + 1) * 2 - x,
    "entries that change places": lambda x: _exchanged(x.clone()),
    "masked_scatter of the first entries": lambda x: x.masked_scatter(x < 0, x),
    "a mask that is nowhere true": lambda x: (x + 1).masked_scatter(
        torch.zeros_like(x, dtype=torch.bool), torch.zeros_like(x)
    ),
    "entries of another mask": lambda x: x.masked_scatter(x < 0, x.masked_select(x > -2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_rectifier_written_as_a_function_is_one_site(name: str) -> None:
    function, kind = FUNCTIONS[name]
    model = function_model(function)
    network = capture(model, points())
    assert kinds(network) == [kind]
    assert not network.opaque
    _assert_same_function_and_gradient(model, network)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_rectifier_written_out_in_several_calls_is_one_site(name: str) -> None:
    function, kind = WRITTEN[name]
    model = function_model(function)
    network = capture(model, points())
    assert kinds(network) == [kind]
    assert not network.notes
    assert [node.op for node in network.graph.nodes if node.op != "placeholder"][-2:] == [
        "call_module",
        "output",
    ]
    _assert_same_function_and_gradient(model, network)
    again = reloaded(network)
    assert torch.equal(again(points()), model(points()))
    doubled = network.copy().double()(points().double())
    torch.testing.assert_close(doubled, model(points().double()))
    half = network.copy().bfloat16()(points().bfloat16())
    assert half.dtype == torch.bfloat16


def test_what_is_computed_of_positions_is_no_rectifier() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).to(x.dtype)
        return x + places * (places > 3)

    network = capture(Call(forward), points())
    assert network.sites == []
    assert network.notes == ()


def test_a_rectifier_around_another_one_leaves_that_its_site() -> None:
    for function in (lambda x: F.relu(x) ** 2, lambda x: 1.7 * F.relu(x), lambda x: F.relu(x) - 1):
        network = capture(function_model(function), points())
        assert names(network) == ["relu"]
        assert network.notes == ()


def test_a_part_that_is_read_elsewhere_too_is_no_part_of_a_rectifier() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        mask = x > 0
        return x * mask + mask.sum()

    assert capture(function_model(lambda x: forward(nn.Module(), x)), points()).sites == []


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("tanh", "tanh"),
        ("hardtanh(-1, 1)", "hardtanh"),
        ("x·tanh(x)", "tanh → mul"),
        ("softsign", "abs → add → div"),
    ],
)
def test_an_activation_that_is_no_rectifier_is_noted(name: str, noted: str) -> None:
    function = NOT_RECTIFIERS[name]
    model = nn.Sequential(function_model(function), function_model(function), nn.Linear(12, 3))
    (note,) = capture(model, points()).notes
    assert note == (
        "activations that are not known as rectifiers stay as they are: "
        f"{noted} in '0', {noted} in '1'"
    )


@pytest.mark.parametrize(
    ("function", "noted"),
    [
        (lambda x, weight: torch.where(x > 0, x, weight * x), ["gt → mul → where"]),
        (lambda x, weight: torch.maximum(x, weight * x), ["mul → maximum"]),
        (lambda x, weight: x * torch.sigmoid(weight * x), ["mul → sigmoid → mul"]),
        (
            lambda x, weight: x + torch.sin(x * weight.exp()) / weight.exp(),
            ["mul → sin → div → add"],
        ),
        (lambda x, weight: (x + weight) * weight.abs(), []),
    ],
)
def test_an_activation_with_weights_of_its_own_is_noted(
    function: Callable[[Tensor, Tensor], Tensor], noted: list[str]
) -> None:
    activation = Call(lambda self, x: function(x, self.weight))
    activation.weight = nn.Parameter(torch.full((12,), 0.2))
    network = captured(nn.Sequential(activation, nn.Linear(12, 3)), points())
    listed = [note.partition("are: ")[2] for note in network.notes]
    assert listed == [f"{calls} in '0'" for calls in noted]


def test_a_gate_and_the_output_are_not_noted() -> None:
    def gated(self: nn.Module, x: Tensor) -> Tensor:
        return torch.sigmoid(x * torch.tanh(self.a(x)) / torch.sqrt(x.var(1, keepdim=True) + 1e-5))

    assert capture(Call(gated, a=nn.Linear(12, 12)), points()).notes == ()


@pytest.mark.parametrize("name", MODULES)
def test_a_rectifier_module_is_one_site_under_its_own_path(name: str) -> None:
    model = nn.Sequential(nn.Identity(), MODULES[name])
    network = capture(model, points())
    assert names(network) == ["1"]
    _assert_same_function_and_gradient(model, network)


def test_elu_in_place_learns_as_elu_does() -> None:
    # In place its gradient is computed from the output, which rounds otherwise.
    model = nn.Sequential(nn.Linear(4, 4), nn.ELU(0.5, inplace=True))
    network = capture(model, torch.randn(2, 4)).copy()
    x = torch.randn(3, 4)
    assert torch.equal(model(x), network(x))
    model(x).square().sum().backward()
    network(x).square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, network.get_parameter("0.weight").grad)


@pytest.mark.parametrize("name", NOT_RECTIFIERS)
def test_gates_and_other_nonlinearities_are_no_sites(name: str) -> None:
    model = function_model(NOT_RECTIFIERS[name])
    network = capture(model, points())
    assert network.sites == []
    _assert_same_function_and_gradient(model, network)


def _assert_same_function_and_gradient(model: nn.Module, network: nn.Module) -> None:
    for training in (False, True):
        outputs, gradients = [], []
        for module in (model.train(training), network.train(training)):
            x = points().requires_grad_()
            torch.manual_seed(3)
            outputs.append(module(x.clone()))
            (
                outputs[-1] * torch.arange(1.0, outputs[-1].numel() + 1).view_as(outputs[-1])
            ).sum().backward()
            gradients.append(x.grad)
        assert same(*outputs)
        assert torch.equal(*gradients)


def test_a_clamp_of_positions_is_no_site_and_leaves_them_integers() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        positions = torch.arange(-1, x.shape[1] - 1, device=x.device).clamp(min=0)
        table = F.one_hot(positions, num_classes=8).to(x.dtype)
        return self.b(F.relu(self.a(x))) + table.sum(0) + self.e(positions.clamp(0, 6)).mean(0)

    model = Call(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 8), e=nn.Embedding(7, 8))
    network = captured(model, torch.randn(3, 6))
    assert names(network) == ["relu"]
    network.double()(torch.randn(4, 6, dtype=torch.float64))  # the positions are no floats


def test_prelu_called_twice_is_two_sites_with_one_weight() -> None:
    prelu = nn.PReLU(4)
    model = Call(
        lambda self, x: self.act(self.b(self.act(self.a(x)))),
        a=nn.Linear(4, 4), b=nn.Linear(4, 4), act=prelu,
    )  # fmt: skip
    network = captured(model, torch.randn(3, 4))
    assert names(network) == ["act", "act_1"]
    assert kinds(network) == ["prelu", "prelu"]
    assert [k for k in network.state_dict() if k.startswith("act")] == ["act.weight"]


def test_a_shared_prelu_keeps_its_weight_through_a_copy_and_a_move() -> None:
    model = nn.Sequential(nn.Linear(4, 4), act := nn.PReLU(4), nn.Linear(4, 4), act)
    network = captured(model, torch.randn(3, 4)).copy().double()
    x = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(network(x), model.double()(x))
    with torch.no_grad():
        act.weight.fill_(3.0)
        network.get_parameter("1.weight").fill_(3.0)
    assert torch.equal(network(x), model(x))


def test_calls_of_one_module_are_numbered() -> None:
    model = Call(lambda self, x: self.act(self.act(self.act(x) - 1) - 1), act=nn.ReLU())
    assert names(capture(model, points())) == ["act", "act_1", "act_2"]


def test_functional_calls_take_the_enclosing_module_and_the_operation() -> None:
    inner = Call(lambda self, x: F.relu(F.relu(self.a(x)) - 1), a=nn.Linear(4, 4))
    model = Call(lambda self, x: F.gelu(self.layer1(x)), layer1=nn.Sequential(inner))
    network = captured(model, torch.randn(2, 4))
    assert names(network) == ["layer1.0.relu", "layer1.0.relu_1", "gelu"]
    assert [site.path for site in network.sites] == ["layer1.0", "layer1.0", ""]


def test_a_functional_call_does_not_take_the_name_of_an_existing_module() -> None:
    model = Call(lambda self, x: self.relu(F.relu(x) - 1), relu=nn.Linear(4, 4))
    network = captured(model, torch.randn(2, 4))
    assert names(network) == ["relu_1"]
    assert "relu.weight" in network.state_dict()


def test_a_tensor_of_zeros_that_is_part_of_the_state_is_not_a_constant() -> None:
    class Floor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("floor", torch.zeros(12))

        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(x, self.floor)

    network = capture(Floor(), points())
    assert network.sites == []
    network.load_state_dict({"floor": torch.ones(12)})
    assert network(points()).min() == 1


def test_each_site_of_a_mixed_model_knows_its_kind() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.GELU(),
        nn.Flatten(), nn.Linear(5 * 16, 6), nn.SiLU(),
    )  # fmt: skip
    network = captured(model, torch.randn(2, 3, 8, 8))
    found = [(site.name, site.kind, site.channel_dim, site.channels) for site in network.sites]
    assert found == [("1", "relu", 1, 4), ("4", "gelu", 1, 5), ("7", "silu", 1, 6)]
    assert all(site.linearized is None for site in network.sites)


def test_a_rectifier_of_weights_is_no_site() -> None:
    model = Call(lambda self, x: F.relu(F.linear(x, F.softplus(self.a.weight))), a=nn.Linear(4, 8))
    net = capture(model.eval(), torch.randn(2, 4))
    assert [site.kind for site in net.sites] == ["relu"]
    again = reloaded(net)
    assert [site.kind for site in again.sites] == ["relu"]
    x = torch.randn(3, 4)
    assert same(net(x), again(x))


def test_a_written_rectifier_of_weights_is_no_site() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        weight = self.a.weight
        return F.relu(F.linear(x, weight * torch.sigmoid(weight)))

    net = capture(Call(forward, a=nn.Linear(4, 8)).eval(), torch.randn(2, 4))
    assert [site.kind for site in net.sites] == ["relu"]


def test_a_site_of_a_saved_network_that_the_data_do_not_reach_is_none() -> None:
    net = capture(nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval(), torch.randn(2, 4))
    (site,) = net.sites
    with net.graph.inserting_before(site.node):
        weight = net.graph.create_node("get_attr", "0.weight")
    weight.meta = {"shape": (8, 4)}
    site.node.args = (weight,)  # as earlier versions took it
    net.recompile()
    assert net.sites == []


def test_a_slope_of_the_models_own_is_told_apart_from_one_that_is_computed() -> None:
    class Sloped(nn.Module):
        def __init__(self, computed: bool) -> None:
            super().__init__()
            self.computed = computed
            self.alpha = nn.Parameter(torch.full((1,), 0.2))

        def forward(self, x: Tensor) -> Tensor:
            return F.prelu(x, self.alpha * 2 if self.computed else self.alpha)

    for computed, reason in ((True, "computed"), (False, "not the weight of an nn.PReLU")):
        net = capture(Sloped(computed).eval(), torch.randn(2, 4))
        assert reason in net.opaque[0].reason
