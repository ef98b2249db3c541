"""A network holds the model's own state under its own names, and leaves the model as it was."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call, captured, evaluate, same, settled
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from shoal.errors import ShoalError
from shoal.network import capture


def small_cnn() -> nn.Module:
    return settled(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
            nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
        )
    )  # fmt: skip


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------- state_dict


def test_parameters_are_the_models_own_and_its_keys_are_kept_in_order() -> None:
    model = small_cnn()
    network = capture(model, images())
    assert list(network.state_dict()) == list(model.state_dict())
    own = dict(network.named_parameters())
    assert all(own[name] is parameter for name, parameter in model.named_parameters())


def test_unused_parameters_stay_in_the_state() -> None:
    model = Call(lambda self, x: self.a(x), a=nn.Linear(4, 4), b=nn.Linear(4, 2), c=nn.ReLU())
    model.register_parameter("lonely", nn.Parameter(torch.ones(3)))
    network = captured(model, torch.randn(2, 4))
    assert set(network.state_dict()) == {"lonely", "a.weight", "a.bias", "b.weight", "b.bias"}


def test_buffers_that_are_not_saved_stay_out_of_the_state() -> None:
    model = Call(lambda self, x: self.a(x) * self.scale + self.shift, a=nn.Linear(4, 4))
    model.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
    model.register_buffer("shift", torch.full((4,), 3.0))
    network = captured(model, torch.randn(2, 4))
    assert list(network.state_dict()) == list(model.state_dict())
    assert dict(network.named_buffers()).keys() == {"scale", "shift"}


def test_plain_tensors_of_a_model_are_constants_and_move_with_the_network() -> None:
    model = Call(lambda self, x: x * self.scale + torch.tensor([1.0, 2.0]))
    model.scale = torch.tensor([3.0, 4.0])
    network = captured(model, torch.randn(2, 2), train=False)
    assert list(network.state_dict()) == []
    assert network.double()(torch.ones(2, 2).double()).tolist() == [[4.0, 6.0]] * 2


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6, bias=False)
        self.head = nn.Linear(4, 6, bias=True)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.embed(x))[:, :4])


def test_tied_weights_stay_tied() -> None:
    model = TiedWeights()
    network = captured(model, torch.randn(2, 4)).copy()
    assert network.get_parameter("head.weight") is network.get_parameter("embed.weight")
    state = {key: value + 1 for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    assert network.get_parameter("head.weight") is network.get_parameter("embed.weight")
    network.double()
    assert network.get_parameter("head.weight") is network.get_parameter("embed.weight")
    assert len(list(network.parameters())) == len(list(model.parameters())) == 2


def test_a_module_under_two_paths_keeps_both_names_and_one_state() -> None:
    shared = settled(nn.BatchNorm1d(4))
    model = Call(
        lambda self, x: self.b(F.relu(self.a(x))),
        a=nn.Sequential(nn.Linear(4, 4), shared), b=nn.Sequential(shared, nn.Linear(4, 4)),
    )  # fmt: skip
    network = captured(model, torch.randn(3, 4)).copy().double()
    assert list(network.state_dict()) == list(model.state_dict())
    assert network.get_buffer("a.1.running_mean") is network.get_buffer("b.0.running_mean")
    network.train()(torch.randn(3, 4).double())
    assert int(network.get_buffer("b.0.num_batches_tracked")) == 2


def test_a_checkpoint_of_the_model_loads_and_back() -> None:
    model, other = small_cnn(), small_cnn()
    network = capture(model, images()).copy()
    network.load_state_dict(other.state_dict())
    assert same(evaluate(network, images()), evaluate(other, images()))
    model.load_state_dict(network.state_dict())
    assert same(evaluate(model, images()), evaluate(other, images()))


# ---------------------------------------------------------------------- the model stays as it was


def test_capture_leaves_the_model_as_it_was() -> None:
    model = Call(lambda self, x: self.body(x), body=small_cnn()).train()
    model.body[1].eval()
    hook_calls: list[int] = []
    model.body[0].register_forward_hook(lambda *_: hook_calls.append(1))
    model.body[6].bias.requires_grad_(False)
    model.body[6].weight.grad = torch.ones(5, 4)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    capture(model, images())
    assert [module.training for module in model.modules()] == modes
    assert same(state, model.state_dict())
    assert all(type(b) is Tensor for b in model.buffers())
    assert not model.body[6].bias.requires_grad
    assert torch.equal(model.body[6].weight.grad, torch.ones(5, 4))
    assert model.body[0].weight.grad is None
    hook_calls.clear()
    model(images())
    assert hook_calls == [1]


def test_a_buffer_that_forward_replaces_is_restored() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("positions", torch.zeros(1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.positions.shape[0] != x.shape[1]:
                self.positions = torch.arange(x.shape[1], dtype=x.dtype)
            return x + self.positions

    model = Cached()
    network = capture(model, torch.randn(2, 4))
    assert all(type(b) is Tensor for b in model.buffers())
    x = torch.randn(3, 4)
    assert same(network(x), model(x))


@pytest.mark.parametrize("training", [True, False])
def test_training_flags_are_taken_over(training: bool) -> None:
    model = small_cnn().train(training)
    model[1].eval()
    network = capture(model, images())
    assert network.training is training
    assert network.get_submodule("3").training is training
    assert not network.get_submodule("1").training


def test_a_frozen_norm_inside_a_training_model_stays_frozen() -> None:
    model = Call(lambda self, x: self.body(x), body=small_cnn()).train()
    model.body[1].eval()
    model.body[3].p = 0.0
    network = capture(model, images()).copy()
    before = network.get_buffer("body.1.running_mean").clone()
    assert same(model(images()), network(images()))
    assert torch.equal(before, network.get_buffer("body.1.running_mean"))


def test_a_norm_that_is_frozen_by_its_own_class_never_learns_statistics() -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> nn.Module:
            return super().train(False)

    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(4), nn.ReLU())).train()
    network = captured(model, images())
    assert isinstance(network.get_submodule("1"), nn.BatchNorm2d)
    assert not network.opaque


def test_frozen_parameters_stay_frozen() -> None:
    model = small_cnn()
    model[0].requires_grad_(False)
    network = capture(model, images()).copy()
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "0.bias"]


def test_capturing_a_network_returns_it() -> None:
    network = capture(small_cnn(), images())
    assert capture(network, images()) is network


# ---------------------------------------------------------------------- copies


def test_a_copy_is_independent() -> None:
    network = capture(small_cnn(), images()).eval()
    before = network(images())
    for twin in (network.copy(), copy.deepcopy(network)):
        assert same(twin(images()), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        twin.plan.record("drop", ("x",))
        twin.replace_module("2", nn.Identity())
        assert same(network(images()), before)
        assert not same(twin(images()), before)
        assert len(network.plan) == 0
        assert network.sites[0].linearized is None
        assert twin.sites[0].linearized == "identity"


def test_a_sharing_copy_has_the_same_tensors_and_its_own_graph_and_plan() -> None:
    network = capture(small_cnn(), images()).eval()
    twin, before = network.sharing_copy(), network(images())
    tensors = [[*net.parameters(), *net.buffers()] for net in (network, twin)]
    assert len(tensors[0]) == 9
    assert all(mine is own for mine, own in zip(*tensors, strict=True))
    with torch.no_grad():
        twin.get_parameter("6.bias").add_(1.0)
    torch.testing.assert_close(network(images()), before + 1)
    twin.plan.record("drop", ("x",))
    twin.replace_module("2", nn.Identity())
    assert len(network.plan) == 0
    assert network.graph is not twin.graph
    assert [net.sites[0].linearized for net in (network, twin)] == [None, "identity"]


def test_pickling_is_refused_in_one_line() -> None:
    network = capture(small_cnn(), images())
    with pytest.raises(ShoalError, match=r"shoal\.save"):
        pickle.dumps(network)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tensors_made_in_forward_follow_the_networks_type(dtype: torch.dtype) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        z = self.a(x)
        steps = torch.arange(4, device=x.device, dtype=x.dtype)
        mask = x.new_zeros(x.shape[0], 4)
        mask[:, :2] = 1.0
        noise = torch.zeros_like(z).masked_fill_(mask > 0, -2.0)
        return z * steps + noise + z.new_ones(4) + torch.full_like(z, 0.5)

    model = Call(forward, a=nn.Linear(4, 4))
    network = captured(model, torch.randn(2, 4)).copy().to(dtype)
    x = torch.randn(3, 4, dtype=dtype)
    assert same(evaluate(network, x), evaluate(model.to(dtype), x))


# ---------------------------------------------------------------------- awkward layers


AWKWARD = {
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()), 8),
    "instance norm": (lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU()), 8),
    "affine instance norm": (lambda: nn.Sequential(nn.InstanceNorm2d(3, affine=True)), 8),
    "tracking instance norm": (
        lambda: nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True)), 8,
    ),
    "bare tracking instance norm": (
        lambda: nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True)), 8,
    ),
    "transposed convolution": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1)), 8,
    ),
    "reflecting convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), 8,
    ),
    "same padding": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", dilation=2)), 8),
    "batch norm without affine": (lambda: nn.Sequential(nn.BatchNorm2d(3, affine=False)), 8),
    "batch norm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), 8,
    ),
    "batch norm with a running average": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, momentum=None)), 8,
    ),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm([8, 8]), nn.LayerNorm(8, bias=False)), 8),
    "bare layer norm": (lambda: nn.Sequential(nn.LayerNorm(8, elementwise_affine=False)), 8),
    "channel dropout": (lambda: nn.Sequential(nn.Dropout2d(0.5), nn.AlphaDropout(0.5)), 8),
    "identity only": (lambda: nn.Sequential(nn.Identity()), 8),
    "flatten and linear": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.ReLU()), 4),
    "pixel shuffle": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PixelShuffle(2)), 4),
    "upsampling": (lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear")), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", AWKWARD)
def test_layers_of_all_kinds_are_captured_to_the_bit(name: str) -> None:
    make, size = AWKWARD[name]
    torch.manual_seed(0)
    model = make()
    x = torch.randn(2, 3, size, size, requires_grad=False)
    model(x)
    if not list(model.parameters()):
        model.append(nn.Conv2d(model(x).shape[1], 2, 1))
    network = captured(settled(model), x)
    assert not network.opaque


def test_conv1d_and_conv3d_are_captured_to_the_bit() -> None:
    for conv, norm, shape in (
        (nn.Conv1d, nn.BatchNorm1d, (2, 3, 9)), (nn.Conv3d, nn.BatchNorm3d, (2, 3, 5, 5, 5)),
    ):  # fmt: skip
        network = captured(nn.Sequential(conv(3, 4, 3), norm(4), nn.ReLU()), torch.randn(shape))
        assert isinstance(network.get_submodule("1"), norm)


def test_an_embedding_is_captured_to_the_bit() -> None:
    model = Call(
        lambda self, x: self.head(self.table(x).mean(1)),
        table=nn.Embedding(10, 4, padding_idx=0), head=nn.Linear(4, 2),
    )  # fmt: skip
    network = captured(model, torch.randint(0, 10, (2, 5)))
    assert isinstance(network.get_submodule("table"), nn.Embedding)


class Apart(nn.Linear):
    """A linear layer that scales its product before its bias is added."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * 0.5 + self.bias


class ApartNorm(nn.BatchNorm2d):
    """A norm whose scale and shift come after a rectifier."""

    def forward(self, x: Tensor) -> Tensor:
        z = F.relu(F.batch_norm(x, self.running_mean, self.running_var))
        return z * self.weight[:, None, None] + self.bias[:, None, None]


@pytest.mark.parametrize(("layer", "shape"), [(Apart(4, 3), (2, 4)), (ApartNorm(4), (2, 4, 5, 5))])
def test_a_call_with_a_part_of_its_modules_tensors_is_captured_to_the_bit(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    nn.init.normal_(layer.bias)
    network = captured(nn.Sequential(settled(layer), nn.ReLU()), torch.randn(shape))
    (opaque,) = network.opaque
    assert opaque.reason == "its parameters are not the weight and bias of one module"


class ScaledGroups(nn.Module):
    """A group norm without a shift, as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 2, self.weight)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.GroupNorm, {"num_groups": 2, "num_channels": 4, "bias": False}),
        (nn.InstanceNorm2d, {"num_features": 4, "affine": True, "bias": False}),
        (ScaledGroups, {}),
    ],
)
def test_a_norm_with_a_scale_and_no_shift_stays_a_function(
    kind: type[nn.Module], options: dict[str, int]
) -> None:
    if not options.keys() <= inspect.signature(kind).parameters.keys():
        pytest.skip(f"{kind.__name__} always has a shift in this version of PyTorch")
    norm = kind(**options)
    nn.init.normal_(norm.weight)
    network = captured(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU()), images())
    (opaque,) = network.opaque
    assert "shift" in opaque.reason


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_computed_weights_stay_functions_and_say_why(wrap: object) -> None:
    model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.ReLU()).eval()  # type: ignore[operator]
    network = capture(model, images())
    assert same(evaluate(network, images()), evaluate(model, images()))
    assert set(network.state_dict()) == set(model.state_dict())
    (opaque,) = network.opaque
    assert opaque.op == "aten.conv2d.default"
    assert opaque.path.startswith("0")
    assert opaque.reason == "its weight is computed in the forward pass"


def test_weight_norm_trains_alike() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU())
    captured(model, torch.randn(2, 4))
