"""Capture leaves a model able to run, whatever its forward pass makes, caches or counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from network_checks import Call, same
from torch import Tensor, nn

import shoal
from shoal.errors import CaptureError
from shoal.network import capture
from shoal.network.as_it_was import as_it_was


def buffer(self: Any, x: Tensor) -> Tensor:
    if not hasattr(self, "made"):
        self.register_buffer("made", torch.arange(4.0))
    made: Tensor = self.made
    return made


def attribute(self: Any, x: Tensor) -> Tensor:
    if getattr(self, "made", None) is None:
        self.made = torch.arange(4.0)
    made: Tensor = self.made
    return made


def entry(self: Any, x: Tensor) -> Tensor:
    cache = self.__dict__.setdefault("cache", {})
    if x.shape[1] not in cache:
        cache[x.shape[1]] = torch.arange(4.0)
    made: Tensor = cache[x.shape[1]]
    return made


@pytest.mark.parametrize("make", [buffer, attribute, entry])
@pytest.mark.parametrize("training", [True, False])
def test_what_a_first_call_makes(make: Callable[..., Tensor], training: bool) -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x + make(self, x)))

    model = Call(forward, layer=nn.Linear(4, 3)).train(training)
    x = torch.randn(2, 4)
    network = capture(model, x)
    expected = model.layer(x + torch.arange(4.0)).relu()  # type: ignore[operator]
    assert same(model(x), expected)
    assert same(network(x), expected)
    assert model.training is training
    assert set(network.state_dict()) == set(model.state_dict())
    assert ("made" in model.state_dict()) == (make is buffer)


def test_only_new_buffers_remain() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.sums += x.sum()
        self.register_buffer("kept", x.sum(), persistent=False)
        return x * 2

    model: Any = Call(forward)
    model.calls, model.seen, model.sums = 3, [1], torch.zeros(())
    held = model.seen
    with as_it_was(model, but_new_buffers=True):
        model(torch.ones(2))
        assert (model.calls, len(held), float(model.sums)) == (4, 2, 2.0)
    assert (model.calls, held, float(model.sums)) == (3, [1], 0.0)
    assert model.seen is held
    assert float(model.kept) == 2.0
    assert "kept" not in model.state_dict()


def refused(model: nn.Module, x: Tensor) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(model, x)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["double", "half", "byte"])
def test_inputs_of_another_type_than_the_weights(bias: bool, kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.ReLU(), nn.Flatten())
    x = getattr(torch.ones(2, 3, 4, 4), kind)()
    given = str(x.dtype).removeprefix("torch.")
    line = f"the inputs are {given} and the weights of Sequential float32"
    assert refused(model, x).startswith(line)
    with pytest.raises(CaptureError, match=line):
        shoal.compress(model, [(x, torch.zeros(2).long())], [(x, torch.zeros(2).long())], epochs=0)


def test_weights_of_another_type_than_the_inputs() -> None:
    text = refused(nn.Linear(4, 4).half(), torch.ones(2, 4))
    assert "inputs are float32" in text
    assert "float16" in text


def test_a_model_that_converts_its_inputs_is_captured() -> None:
    model = Call(lambda self, x: self.layer(x.float()), layer=nn.Linear(4, 4))
    x = torch.ones(2, 4, dtype=torch.float64)
    assert same(capture(model, x).eval()(x), model(x))
