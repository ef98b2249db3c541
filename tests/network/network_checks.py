"""What the tests of `shoal.network` share: build a model, capture it, compare to the bit."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shoal import compat, models
from shoal.errors import ShoalError
from shoal.network import Network, capture
from shoal.network.saving import read_network, write_network

_PROBABILITIES = ("p", "drop_prob", "drop_rate", "dropout")


class Call(nn.Module):
    """A model whose whole forward pass is one function of the model and its inputs."""

    def __init__(self, forward: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def torchvision_model(name: str, **options: Any) -> nn.Module:
    try:
        torchvision = compat.import_torchvision()
    except ShoalError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None, **options)


def timm_library() -> Any:
    try:
        return compat.import_timm()
    except ShoalError as error:
        pytest.skip(str(error))


def timm_model(name: str, **options: Any) -> nn.Module:
    timm = timm_library()
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options)


def settled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every norm running statistics as training leaves them: neither 0 nor 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        mean = getattr(module, "running_mean", None)
        variance = getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            mean.copy_(0.1 * torch.randn(mean.shape, generator=generator))
            variance.copy_(0.5 + torch.rand(variance.shape, generator=generator))
    return model


def calm(model: nn.Module) -> nn.Module:
    """Turn off what draws random numbers in training."""
    for module in model.modules():
        for name in _PROBABILITIES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def same(a: Any, b: Any) -> bool:
    """Whether two outputs have one structure and the same bits."""
    left, structure = pytree.tree_flatten(a)
    right, other = pytree.tree_flatten(b)
    return structure == other and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y
        for x, y in zip(left, right, strict=True)
    )


def evaluate(module: nn.Module, inputs: Any) -> Any:
    """Call in eval mode on copies; the fused attention of PyTorch's own layers rounds otherwise."""
    args, kwargs = as_call(copy.deepcopy(inputs))
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return module.eval()(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def training_differences(
    model: nn.Module, network: Network, inputs: Any, *, random: bool = False
) -> list[str]:
    """Name what differs after one step's forward and backward pass in training mode."""
    twins = [copy.deepcopy(model).train(), network.copy().train()]
    twins = twins if random else [calm(twin) for twin in twins]
    outputs, losses = [], []
    for twin in twins:
        args, kwargs = as_call(inputs)
        torch.manual_seed(1)
        outputs.append(twin(*args, **kwargs))
        floats = [t for t in pytree.tree_leaves(outputs[-1]) if _learns(t)]
        losses.append(sum(t.float().square().mean() for t in floats))
        losses[-1].backward()
    wrong = [] if same(*outputs) else ["outputs"]
    wrong += [] if torch.equal(*losses) else ["loss"]
    gradients = [{k: p.grad for k, p in twin.named_parameters()} for twin in twins]
    wrong += [f"gradient of {k}" for k in gradients[0] if not _equal(*(g[k] for g in gradients))]
    states = [twin.state_dict() for twin in twins]
    return wrong + [f"state of {k}" for k in states[0] if not _equal(*(s[k] for s in states))]


def _learns(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


def captured(model: nn.Module, inputs: Any, *, train: bool = True) -> Network:
    """Capture a model and assert that nothing changed: outputs, gradients, state, to the bit."""
    network = capture(model, inputs)
    assert same(evaluate(copy.deepcopy(model), inputs), evaluate(network.copy(), inputs))
    assert set(network.state_dict()) == set(model.state_dict())
    assert reloading_differences(network, inputs, train=train) == []
    if train:
        assert training_differences(model, network, inputs) == []
    return network


def reloaded(network: Network) -> Network:
    """Save a network and load it again."""
    with tempfile.TemporaryDirectory() as folder:
        write_network(network, Path(folder))
        return read_network(Path(folder))


def reloading_differences(network: Network, inputs: Any, *, train: bool = True) -> list[str]:
    """Name what differs when a network was saved and loaded again."""
    back = reloaded(network)
    wrong = [] if same(evaluate(network.copy(), inputs), evaluate(back, inputs)) else ["eval mode"]
    wrong += training_differences(network, back, inputs, random=True) if train else []
    facts = [(net.sites, net.blocks, net.opaque, net.notes, net.code) for net in (network, back)]
    wrong += [] if facts[0] == facts[1] else ["what it is made of"]
    states = [{k: _held(v) for k, v in net.state_dict(keep_vars=True).items()}
              for net in (network, back)]  # fmt: skip
    wrong += [] if list(states[0].items()) == list(states[1].items()) else ["tensors"]
    return wrong


def _held(value: Tensor) -> tuple[Any, ...]:
    return value.shape, value.stride(), value.dtype, value.requires_grad, type(value)


@functools.cache
def example(name: str) -> tuple[nn.Module, Network]:
    """Return a well-known model of 32×32 images and its capture, for tests that only look."""
    library, _, model_name = name.rpartition(":")
    torch.manual_seed(0)
    make = getattr(models, model_name) if not library else None
    model = settled(make() if make else torchvision_model(model_name))
    return model, capture(model, torch.randn(2, 3, 32, 32))


def names(network: Network) -> list[str]:
    return [site.name for site in network.sites]


def kinds(network: Network) -> list[str]:
    return [site.kind for site in network.sites]
