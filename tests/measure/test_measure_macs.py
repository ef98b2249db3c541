"""MACs: published figures, and the laws a count obeys."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import shoal
from shoal.errors import ConfigError
from shoal.measure import count_macs, count_params
from shoal.measure.size import count_node_macs
from shoal.models import cifar_resnet20, import_torchvision


@pytest.mark.parametrize(
    ("name", "macs", "params"),
    [
        # torchvision's own model pages, GFLOPS (multiply-accumulates) and parameters.
        ("resnet18", 1.814e9, 11_689_512),
        ("resnet50", 4.089e9, 25_557_032),
        ("mobilenet_v2", 300.8e6, 3_504_872),
        ("vgg16_bn", 15.47e9, 138_365_992),
        ("vit_b_16", 17.56e9, 86_567_656),
        ("swin_t", 4.491e9, 28_288_354),
    ],
)
def test_published_figures(name: str, macs: float, params: int) -> None:
    with torch.device("meta"):
        model = getattr(import_torchvision().models, name)()
    count = count_macs(model, torch.empty(1, 3, 224, 224))
    assert count.total == pytest.approx(macs, rel=1e-3)
    assert count.uncounted == ()
    assert count_params(model) == params


def test_cifar_resnet20_has_the_paper_figures() -> None:
    model = cifar_resnet20()
    assert count_macs(model, torch.zeros(2, 3, 32, 32)).total == 40_551_040
    assert count_params(model) == pytest.approx(0.27e6, rel=0.01)


class Mixed(nn.Module):
    """Every kind of counted work, partly outside any leaf module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.back = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.embed = nn.Linear(64, 16)
        self.lstm = nn.LSTM(16, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.encode = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.pair = nn.Bilinear(16, 16, 5)
        self.weight = nn.Parameter(torch.randn(5, 3))
        self.line = nn.Parameter(torch.randn(3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(self.back(self.conv(image)).flatten(2))  # [batch, 4, 16]
        tokens, _ = self.lstm(tokens)
        tokens = self.attend(tokens, tokens, tokens)[0]
        tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        tokens = self.encode(tokens)
        return (self.pair(tokens, tokens) @ self.weight) @ self.line


def test_each_kind_of_work_counts_once() -> None:
    count = count_macs(Mixed(), torch.zeros(3, 4, 4, 4))
    attention = 2 * 4 * 4 * 16  # scores and mixture of 4 tokens of width 16
    projections = 4 * 16 * 48 + 4 * 16 * 16
    assert count.by_module == {
        "conv": 8 * 4 * 4 * 2 * 9,
        "back": 8 * 4 * 4 * 4 * 4,
        "embed": 4 * 64 * 16,
        "lstm": 4 * (2 * 32 * (16 + 8) + 2 * 32 * (16 + 8)),
        "attend": attention + projections,
        "encode.self_attn": attention + projections,
        "encode.linear1": 4 * 16 * 32,
        "encode.linear2": 4 * 32 * 16,
        "pair": 4 * 5 * 16 * 16,
        "": attention + 4 * 5 * 3 + 4 * 3,
    }
    assert count.total == sum(count.by_module.values())


class TinyBlock(nn.Module):
    """A block of ViT-Ti/16 at 224 px: 197 tokens of width 192, three heads."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(192), nn.LayerNorm(192)
        self.qkv, self.proj = nn.Linear(192, 576), nn.Linear(192, 192)
        self.attend = nn.MultiheadAttention(192, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(192, 768), nn.GELU(), nn.Linear(768, 192))
        self.attention = attention

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        if self.attention == "module":
            return self.attend(x, x, x, need_weights=False)[0]
        query, key, value = self.qkv(x).unflatten(-1, (3, 3, 64)).permute(2, 0, 3, 1, 4)
        mask = torch.ones(197, 197, dtype=torch.bool).tril() if self.attention == "mask" else None
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=self.attention == "causal"
        )
        return self.proj(out.transpose(1, 2).flatten(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixed(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@pytest.mark.parametrize("attention", ["module", "function", "mask", "causal"])
def test_attention_counts_however_it_is_called(attention: str) -> None:
    tokens, width = 197, 192
    layers = tokens * width * (3 * width + width + 4 * width + 4 * width)
    scores_and_mixture = 2 * tokens * tokens * width
    count = count_macs(TinyBlock(attention), torch.zeros(2, tokens, width))
    assert count.total == layers + scores_and_mixture
    assert count.uncounted == ()


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_macs_are_those_of_one_sample(batch: int) -> None:
    assert count_macs(Mixed(), torch.zeros(batch, 4, 4, 4)) == count_macs(
        Mixed(), torch.zeros(4, 4, 4, 4)
    )


def test_what_is_not_understood_is_named() -> None:
    class Spectral(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(x).abs()

    count = count_macs(Spectral(), torch.zeros(2, 8))
    assert count.total == 0
    assert count.uncounted == ("aten._fft_r2c",)
    assert json.loads(json.dumps(count.to_dict()))["uncounted"] == ["aten._fft_r2c"]


def test_control_flow_that_depends_on_values_is_followed() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if x.sum() > 0 else x

    assert count_macs(Branching(), torch.ones(2, 4)).total == 16
    assert count_macs(Branching(), -torch.ones(2, 4)).total == 0


def test_a_shared_module_counts_each_call_and_a_shared_weight_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(self.a(x)))

    model = Twice()
    assert count_macs(model, torch.zeros(2, 4)).by_module == {"a": 32, "b": 16}
    assert count_params(model) == 16


def test_inputs_may_be_a_tuple_or_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * scale

    x, scale = torch.zeros(3, 4), torch.ones(3, 1)
    assert count_macs(Two(), (x, scale)).total == 8
    assert count_macs(Two(), {"x": x, "scale": scale}).total == 8


def test_counting_leaves_model_and_settings_alone() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.attend = nn.MultiheadAttention(4, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.last = None
            return self.norm(x)

    model = Counting()
    model.attend.eval()
    calls = model.calls
    seen: list[str] = []
    model.norm.register_forward_hook(lambda *_: seen.append("called"))
    settings = (
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch.is_grad_enabled(),
    )
    count_macs(model, torch.zeros(2, 3, 4, 4))
    assert model.training
    assert model.norm.training
    assert not model.attend.training
    assert model.calls is calls
    assert calls == 0
    assert model.norm.num_batches_tracked == 0
    assert seen == ["called"]
    assert len(model.norm._forward_hooks) == 1
    assert not torch.nn.modules.module._global_forward_hooks
    assert settings == (
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
        torch.is_grad_enabled(),
    )


def test_wrong_inputs_get_one_clear_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"cannot be called with these inputs .*pass inputs"):
        count_macs(nn.Linear(3, 3), torch.zeros(2, 4))
    assert capfd.readouterr().err == ""  # nor does PyTorch print a traceback of its own
    with pytest.raises(ConfigError, match=r"needs an nn\.Module"):
        count_macs(torch.relu, torch.zeros(2, 4))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no sample"):
        count_macs(nn.Linear(3, 3), torch.zeros(0, 3))
    with pytest.raises(ConfigError, match="a tuple of tensors or a dict"):
        count_macs(nn.Linear(3, 3), "image.png")  # type: ignore[arg-type]


def test_nodes_may_have_the_names_of_a_modules_own_methods() -> None:
    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.to(torch.float32))

    x = torch.ones(2, 4, dtype=torch.int64)
    network = shoal.capture(Cast().eval(), x)
    assert "to" in [node.name for node in network.graph.nodes]
    assert count_node_macs(network, x[:1]) == {"fc": 12}
