"""The neurons of a site lie along the dimension that its nearest layer upstream decides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call, example, timm_model, torchvision_model
from torch import Tensor, nn

from shoal.network import capture

CONV = lambda: nn.Conv2d(3, 4, 3)  # noqa: E731


def _tokens(self: nn.Module, x: Tensor) -> Tensor:
    return F.gelu(self.a(self.conv(x).flatten(2).transpose(1, 2)))


def _back(self: nn.Module, x: Tensor) -> Tensor:
    return F.gelu(self.a(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Callable[[], nn.Module]], tuple, int, int]]
CASES = {
    "images": (lambda s, x: F.relu(s.conv(x)), {"conv": CONV}, (3, 6, 6), 1, 4),
    "images, channels last": (
        lambda s, x: F.relu(s.conv(x).permute(0, 2, 3, 1)), {"conv": CONV}, (3, 6, 6), 3, 4,
    ),
    "moved and moved back": (
        _back, {"conv": CONV, "a": lambda: nn.Linear(4, 5)}, (3, 6, 6), 1, 5,
    ),
    "tokens": (_tokens, {"conv": CONV, "a": lambda: nn.Linear(4, 5)}, (3, 6, 6), 2, 5),
    "tokens without a layer": (
        lambda s, x: F.relu(s.conv(x).flatten(2).transpose(1, 2)), {"conv": CONV}, (3, 6, 6), 2, 4,
    ),
    "flattened space": (
        lambda s, x: F.relu(s.conv(x).flatten(2)), {"conv": CONV}, (3, 6, 6), 1, 4,
    ),
    "mixing of tokens": (
        lambda s, x: F.gelu(s.a(x.transpose(1, 2))), {"a": lambda: nn.Linear(6, 5)}, (6, 4), 2, 5,
    ),
    "vectors": (lambda s, x: F.relu(s.a(x)), {"a": lambda: nn.Linear(4, 5)}, (4,), 1, 5),
    "pooled vectors": (
        lambda s, x: F.relu(s.conv(x).mean((2, 3))), {"conv": CONV}, (3, 6, 6), 1, 4,
    ),
    "pooled tokens": (
        lambda s, x: F.relu(s.a(x).mean(1)), {"a": lambda: nn.Linear(4, 5)}, (6, 4), 1, 5,
    ),
    "tokens made square": (
        lambda s, x: F.relu(s.a(x).view(x.shape[0], 2, 3, 5)), {"a": lambda: nn.Linear(4, 5)},
        (6, 4), 3, 5,
    ),
    "a lifted sequence": (
        lambda s, x: F.relu(s.a(x).unsqueeze(1)), {"a": lambda: nn.Linear(4, 5)}, (6, 4), 3, 5,
    ),
    "flattened": (
        lambda s, x: F.relu(s.conv(x).flatten(1)), {"conv": CONV}, (3, 6, 6), 1, 64,
    ),
    "sequences": (
        lambda s, x: F.relu(s.c(x)), {"c": lambda: nn.Conv1d(3, 4, 3)}, (3, 9), 1, 4,
    ),
    "volumes": (
        lambda s, x: F.relu(s.c(x)), {"c": lambda: nn.Conv3d(3, 4, 3)}, (3, 5, 5, 5), 1, 4,
    ),
    "layer norm": (lambda s, x: F.relu(s.n(x)), {"n": lambda: nn.LayerNorm(4)}, (6, 4), 2, 4),
    "batch norm of a sequence": (
        lambda s, x: F.relu(s.n(x)), {"n": lambda: nn.BatchNorm1d(6)}, (6, 4), 1, 6,
    ),
    "after a sum": (
        lambda s, x: F.relu(s.a(x) + s.a(x).mean(1, keepdim=True)),
        {"a": lambda: nn.Linear(4, 5)}, (6, 4), 2, 5,
    ),
    "after concatenation": (
        lambda s, x: F.relu(torch.cat([s.conv(x), s.conv(x)], 1)), {"conv": CONV}, (3, 6, 6), 1, 8,
    ),
    "after pooling": (
        lambda s, x: F.relu(F.max_pool2d(s.conv(x), 2)), {"conv": CONV}, (3, 6, 6), 1, 4,
    ),
    "raw images": (lambda s, x: F.relu(x), {}, (3, 6, 6), 1, 3),
    "raw tokens": (lambda s, x: F.relu(x), {}, (6, 4), 2, 4),
    "raw vectors": (lambda s, x: F.relu(x), {}, (4,), 1, 4),
    "layer norm of images": (
        lambda s, x: F.relu(s.n(s.conv(x))),
        {"conv": CONV, "n": lambda: nn.LayerNorm([4, 4, 4])}, (3, 6, 6), 1, 4,
    ),
    "layer norm of images without parameters": (
        lambda s, x: F.relu(F.layer_norm(s.conv(x), [4, 4, 4])), {"conv": CONV}, (3, 6, 6), 1, 4,
    ),
    "a slope for all tokens": (
        lambda s, x: F.relu(s.act(s.a(x)) + 1),
        {"a": lambda: nn.Linear(4, 8), "act": nn.PReLU}, (6, 4), 2, 8,
    ),
    "a slope for each channel": (
        lambda s, x: F.relu(s.act(x) + 1), {"act": lambda: nn.PReLU(6)}, (6, 4), 1, 6,
    ),
    "a chain of rectifiers": (
        lambda s, x: F.relu(F.gelu(s.a(x)) - 1), {"a": lambda: nn.Linear(4, 5)}, (6, 4), 2, 5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_dimension_of_the_neurons(name: str) -> None:
    forward, children, shape, dim, channels = CASES[name]
    model = Call(forward, **{key: make() for key, make in children.items()})
    site = capture(model, torch.randn(2, *shape)).sites[-1]
    assert (site.channel_dim, site.channels) == (dim, channels)


def test_swin_and_vit_have_their_neurons_last() -> None:
    vit = timm_model("vit_tiny_patch16_224", img_size=32, depth=1)
    (site,) = capture(vit, torch.randn(2, 3, 32, 32)).sites
    assert (site.channel_dim, site.channels) == (2, 768)


@pytest.mark.slow
def test_swin_has_its_neurons_last() -> None:
    sites = capture(torchvision_model("swin_t"), torch.randn(2, 3, 64, 64)).sites
    assert {site.channel_dim for site in sites} == {3}
    assert [site.channels for site in sites][:3] == [384, 384, 768]


@pytest.mark.long
def test_mobilenets_neurons_are_its_channels() -> None:
    sites = example("torchvision:mobilenet_v2")[1].sites
    assert {site.channel_dim for site in sites} == {1}
    assert [site.channels for site in sites][:3] == [32, 32, 96]
