"""What a model does only while training, its network does too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_checks import (
    Call,
    captured,
    same,
    settled,
    timm_library,
    timm_model,
    torchvision_model,
    training_differences,
)
from torch import Tensor, nn

from shoal import compat
from shoal.measure import depth
from shoal.network import Network, capture
from shoal.network.modules import Attention, FrozenBatchNorm, StochasticDepth


def probabilities(network: Network) -> list[float]:
    called = [n.target for n in network.graph.nodes if n.op == "call_module"]
    layers = [network.get_submodule(str(path)) for path in called]
    return [round(layer.p, 6) for layer in layers if isinstance(layer, StochasticDepth)]


# ---------------------------------------------------------------------- stochastic depth


class Residual(nn.Module):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(F.relu(self.a(x)))


class OldDropPath(nn.Module):
    """As it was written before `bernoulli_`, and still is in many a repository."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.p
        noise = keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype)
        noise.floor_()
        return x.div(keep) * noise


def drop_layers(p: float) -> dict[str, nn.Module]:
    compat.import_torchvision()
    timm_library()
    from timm.layers import DropPath
    from torchvision.ops import StochasticDepth as Torchvision

    return {
        "torchvision row": Torchvision(p, "row"), "torchvision batch": Torchvision(p, "batch"),
        "timm": DropPath(p), "timm unscaled": DropPath(p, scale_by_keep=False),
        "old": OldDropPath(p),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["torchvision row", "torchvision batch", "timm", "timm unscaled", "old"]
)
def test_stochastic_depth_is_restored(kind: str) -> None:
    model = nn.Sequential(Residual(drop_layers(0.25)[kind]), Residual(drop_layers(0.5)[kind]))
    network = capture(model, torch.randn(2, 4))
    assert probabilities(network) == [0.25, 0.5]
    layer = network.get_submodule("0.drop")
    assert isinstance(layer, StochasticDepth)
    assert layer.per_sample == ("batch" not in kind)
    assert layer.rescale == ("unscaled" not in kind)
    assert not network.notes
    assert [block.removable for block in network.blocks] == [True, True]


@pytest.mark.parametrize("kind", ["torchvision row", "torchvision batch", "timm"])
def test_stochastic_depth_draws_as_the_model_does(kind: str) -> None:
    model = nn.Sequential(Residual(drop_layers(0.5)[kind]), Residual(drop_layers(0.5)[kind]))
    network = capture(model, torch.randn(2, 4))
    x = torch.randn(8, 4)
    outputs = []
    for module in (model.train(), network.train()):
        torch.manual_seed(5)
        outputs.append(module(x))
    assert same(*outputs)


def test_with_certain_dropping_the_branch_vanishes() -> None:
    network = capture(Residual(drop_layers(0.9)["timm"]), torch.randn(2, 4)).train()
    (layer,) = (m for m in network.modules() if isinstance(m, StochasticDepth))
    layer.p = 1.0
    x = torch.randn(6, 4)
    assert torch.equal(network(x), x)
    network.eval()
    assert not torch.equal(network(x), x)


def test_a_drop_whose_result_is_concatenated_or_returned_is_restored() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.drop(x), x], 1))

    drops = drop_layers(0.5)
    model = Call(forward, drop=drops["timm"], last=drops["torchvision row"])
    network = capture(model, torch.randn(2, 4))
    assert probabilities(network) == [0.5, 0.5]
    assert not network.notes


@pytest.mark.slow
def test_torchvisions_models_keep_their_stochastic_depth() -> None:
    model = torchvision_model("convnext_tiny", stochastic_depth_prob=0.1)
    network = capture(model, torch.randn(2, 3, 32, 32))
    expected = [0.1 * i / 17 for i in range(18)]
    assert probabilities(network) == [round(p, 6) for p in expected if p > 0]


@pytest.mark.slow
def test_efficientnet_and_swin_keep_their_stochastic_depth() -> None:
    for name, size, count in (("efficientnet_b0", 32, 9), ("swin_t", 64, 24)):
        model = torchvision_model(name)
        compat.import_torchvision()
        from torchvision.ops import StochasticDepth as Torchvision

        found = [m.p for m in model.modules() if isinstance(m, Torchvision)]
        network = capture(model, torch.randn(2, 3, size, size))
        got = probabilities(network)
        assert len(got) >= count - 2
        assert set(got) <= {round(p, 6) for p in found}


def test_timms_drop_path_rates_are_kept() -> None:
    model = timm_model("vit_tiny_patch16_224", img_size=32, depth=3, drop_path_rate=0.2)
    network = capture(model, torch.randn(2, 3, 32, 32))
    assert probabilities(network) == [0.1, 0.1, 0.2, 0.2]


# ---------------------------------------------------------------------- dropout


@pytest.mark.long
def test_attention_dropout_is_restored() -> None:
    class Attend(nn.Module):
        def __init__(self, weights: bool) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
            self.weights = weights

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=self.weights)[0]

    for weights in (False, True):
        torch.manual_seed(0)
        model = Attend(weights)
        network = capture(model, torch.randn(2, 5, 8))
        assert not network.notes
        kinds = Attention if not weights else nn.Dropout
        (layer,) = (m for m in network.modules() if isinstance(m, kinds))
        assert (layer.dropout if isinstance(layer, Attention) else layer.p) == 0.4
        x = torch.randn(3, 5, 8)
        outputs = []
        for module in (model.train(), network.train()):
            torch.manual_seed(2)
            outputs.append(module(x))
        assert same(*outputs)
        assert not same(outputs[1], network.eval()(x))


@pytest.mark.long
def test_a_transformer_layer_of_torch_trains_alike() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    network = captured(model, torch.randn(2, 5, 8))
    assert not network.notes
    assert [site.kind for site in network.sites] == ["relu"]
    drops = [m for m in network.modules() if isinstance(m, (nn.Dropout, Attention))]
    assert len(drops) == 4


def test_functional_dropout_follows_its_own_flag() -> None:
    cases: dict[str, tuple[Any, int]] = {
        "self.training": (lambda self, x: F.dropout(self.a(x), 0.5, self.training), 1),
        "never": (lambda self, x: F.dropout(self.a(x), 0.5, False), 0),
    }
    for forward, count in cases.values():
        model = Call(forward, a=nn.Linear(6, 6))
        network = capture(model, torch.randn(2, 6))
        assert sum(isinstance(m, nn.Dropout) for m in network.modules()) == count
        outputs = []
        for module in (model.train(), network.train()):
            torch.manual_seed(2)
            outputs.append(module(torch.ones(3, 6)))
        assert same(*outputs)


# ---------------------------------------------------------------------- norms


class FunctionalNorm(nn.Module):
    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))
        self.bias = nn.Parameter(torch.rand(4))
        self.register_buffer("running_mean", torch.rand(4))
        self.register_buffer("running_var", torch.rand(4) + 0.5)
        self.follows = follows

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and self.follows
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.2
        )


@pytest.mark.parametrize("follows", [True, False])
def test_a_norm_written_as_a_function_keeps_its_own_rule(follows: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FunctionalNorm(follows), nn.ReLU())
    network = captured(model, torch.randn(2, 3, 6, 6))
    assert isinstance(network.get_submodule("1"), FrozenBatchNorm) != follows
    assert isinstance(network.get_submodule("1"), nn.BatchNorm2d)


def test_a_norm_whose_tensors_are_no_modules_own_still_follows_the_flag() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.scale, None, self.training)

    model = Call(forward)
    model.register_parameter("scale", nn.Parameter(torch.rand(4)))
    model.register_buffer("mean", torch.rand(4))
    model.register_buffer("var", torch.rand(4) + 0.5)
    network = capture(model, torch.randn(3, 4))
    assert network.opaque[0].op == "aten.batch_norm.default"
    assert training_differences(model, network, torch.randn(3, 4)) == []


# ---------------------------------------------------------------------- what cannot be restored


def test_an_auxiliary_head_of_training_is_noted() -> None:
    class WithAuxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head, self.extra = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Any:
            x = F.relu(self.a(x))
            return (self.head(x), self.extra(x)) if self.training else self.head(x)

    network = capture(WithAuxiliary(), torch.randn(2, 4))
    (note,) = network.notes
    assert "extra" in note
    assert "training" in note
    assert "extra.weight" in network.state_dict()


def test_noise_added_in_training_is_noted() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.randn_like(x)
        return self.a(x)

    network = capture(Call(forward, a=nn.Linear(4, 4)), torch.randn(2, 4))
    assert len(network.notes) == 1


def test_only_what_is_lost_is_noted_and_what_follows_it_is_kept() -> None:
    normed = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), normed, Residual(OldDropPath(0.5)), nn.Linear(4, 2))
    network = capture(model, torch.randn(2, 4))
    (note,) = network.notes
    assert note == (
        "only in training mode the model also computes 1.parametrizations.weight.0: the network "
        "leaves that out"
    )
    assert probabilities(network) == [0.5]


def test_a_model_that_cannot_be_exported_in_training_is_noted() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        if self.training and x.sum() > 0:
            return self.a(x) * 2
        return self.a(x)

    network = capture(Call(forward, a=nn.Linear(4, 4)), torch.randn(2, 4))
    (note,) = network.notes
    assert "training mode could not be captured" in note


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("googlenet", 96), ("inception_v3", 299)])
def test_models_with_auxiliary_heads_are_captured_with_a_note(name: str, size: int) -> None:
    model = settled(torchvision_model(name, init_weights=False, aux_logits=True))
    network = captured(model, torch.randn(2, 3, size, size), train=False)
    assert len(network.notes) == 1
    assert "aux" in network.notes[0].lower()
    assert set(network.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_that_the_model_defines_itself_is_noted(frozen: bool) -> None:
    class StraightThrough(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient

    layer = nn.Linear(4, 4)
    model = Call(
        lambda self, x: self.b(StraightThrough.apply(self.a(x))), a=layer, b=nn.Linear(4, 2)
    )
    layer.requires_grad_(not frozen)
    notes = capture(model, torch.randn(2, 4)).notes
    assert [note.partition(" itself")[0] for note in notes] == (
        [] if frozen else ["the model defines the gradient of StraightThrough"]
    )
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_copy_in_training_alone_is_no_loss() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(x)
        return self.a((y.contiguous() if self.training else y).reshape(x.shape[0], 20))

    model = Call(forward, a=nn.Linear(20, 4))
    network = captured(model, torch.randn(3, 4, 5))
    assert network.notes == ()


# ---------------------------------------------------------------------- recurrent layers


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], layers: int) -> None:
        super().__init__()
        self.rnn = kind(12, 16, layers, dropout=0.5 * (layers > 1), batch_first=True)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.long
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_dropout_between_recurrent_layers_is_kept(kind: type[nn.RNNBase], layers: int) -> None:
    model, x = Recurrent(kind, layers), torch.randn(4, 7, 12)
    network = captured(model, x, train=False)
    assert network.notes == ()
    assert depth(network) == layers + 2
    assert training_differences(model, network, x, random=True) == []
    network.train()
    assert torch.equal(network(x), network(x)) == (layers == 1)
