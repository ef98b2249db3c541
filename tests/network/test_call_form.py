"""Inputs that are no tensors are part of a network: filled in where left out, never ignored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_checks import Call, same
from torch import Tensor, nn

import shoal
from shoal.errors import CaptureError
from shoal.network import Network, capture
from shoal.training import evaluate, fit


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor, scale: float | None = 1.0, return_dict: bool | None = None) -> Any:
        z = torch.relu(self.norm(self.stem(x)))
        z = self.head(z.mean((2, 3)))
        z = z if scale is None else z * scale
        return {"logits": z} if return_dict else (z,)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def doubled(images: Tensor) -> Network:
    return capture(Scaled(), (images, 2.0)).eval()


CALLS: list[Callable[[Network, Tensor], Any]] = [
    lambda net, x: net(x),
    lambda net, x: net(x, 2.0),
    lambda net, x: net(x, scale=2.0),
    lambda net, x: net(scale=2.0, x=x),
    lambda net, x: net(x=x),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_constant_is_filled_in_or_given_as_captured(
    doubled: Network, images: Tensor, call: Callable[[Network, Tensor], Any]
) -> None:
    head: Any = doubled.get_submodule("head")
    norm, stem = doubled.get_submodule("norm"), doubled.get_submodule("stem")
    expected = head(torch.relu(norm(stem(images))).mean((2, 3))) * 2
    assert same(call(doubled, images), (expected,))


@pytest.mark.parametrize("value", [4.0, 2, True, None, math.nan, "2.0", torch.tensor(2.0)])
def test_another_value_than_the_captured_one_is_refused(
    doubled: Network, images: Tensor, value: Any
) -> None:
    with pytest.raises(CaptureError, match=r"scale=2\.0") as caught:
        doubled(images, value)
    assert "\n" not in str(caught.value)


def test_none_is_a_constant_too(images: Tensor) -> None:
    network = capture(Scaled(), {"x": images, "scale": None, "return_dict": True}).eval()
    assert same(network(images), network(images, None, True))
    with pytest.raises(CaptureError, match="scale=None"):
        network(images, 1.0)


def test_a_constant_among_tensors_is_named_by_its_argument() -> None:
    model = Call(lambda self, pair: pair["x"] * pair["by"])
    x = torch.randn(2, 3)
    network = capture(model, ({"x": x, "by": 3},))
    assert same(network({"x": x, "by": 3}), x * 3)
    with pytest.raises(CaptureError, match="args=3"):
        network({"x": x, "by": 4})


def test_a_number_in_the_place_of_a_tensor_is_refused(images: Tensor) -> None:
    network = capture(Call(lambda self, x, y: x + y), (images, images))
    with pytest.raises(CaptureError, match=r"is 1\.0.*tensor"):
        network(images, 1.0)


@pytest.mark.parametrize("extra", [1, 2])
def test_inputs_beyond_the_models_own_are_refused(extra: int) -> None:
    network = capture(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3))
    with pytest.raises(CaptureError, match="call it the same way"):
        network(*[torch.randn(2, 3)] * (1 + extra))


def test_loaders_need_not_carry_the_constants(images: Tensor) -> None:
    network = capture(Scaled(), {"x": images, "return_dict": True})
    loader = [{"x": images, "labels": torch.tensor([0, 1, 2, 3])}]
    site = network.sites[0].name
    assert set(shoal.score(network, loader)) == {site}
    shoal.linearize_(network, site, loader=loader)
    report = shoal.merge_(network, loader, policy="always")
    assert report.max_rel_error <= 1e-5
    assert set(network(x=images)) == {"logits"}


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.uint8, torch.int64])
def test_inputs_of_another_type_than_the_weights_are_named(kind: torch.dtype) -> None:
    network = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
    images, labels = (torch.rand(4, 1, 8, 8) * 9).to(kind), torch.arange(4)
    name = str(kind).removeprefix("torch.")
    wanted = (
        f"the inputs are {name} and the weights of the network float32: convert the inputs to "
        "float32, or the network to the type of the inputs"
    )
    data = [(images, labels)]
    calls: list[Callable[[], object]] = [
        lambda: network(images),
        lambda: shoal.score(network, data),
        lambda: shoal.score(network, data, "line_loss"),
        lambda: shoal.fit_lines(network, data),
        lambda: evaluate(network, data),
        # In fp32: under autocast to bf16, which "auto" is on some processors, layers convert fp16.
        lambda: fit(network.copy(), data, epochs=1, recipe={"precision": "fp32"}),
    ]
    for call in calls:
        with pytest.raises(CaptureError) as refused:
            call()
        assert str(refused.value) == wanted
    if kind.is_floating_point:
        assert network.copy().to(kind)(images).dtype == kind
