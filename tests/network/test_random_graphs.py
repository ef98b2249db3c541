"""Whatever small network is drawn, its capture is the same function, in training too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_checks import captured, settled
from torch import Tensor, nn

WIDTH = 4

RECTIFIERS = st.sampled_from(
    ["relu", "relu_", "module", "module_", "gelu", "silu", "leaky", "prelu", "clamp", "relu6"]
)
STEPS = st.one_of(
    st.tuples(st.just("conv"), st.sampled_from([(1, 1), (3, 1), (3, WIDTH), (3, 2)])),
    st.tuples(st.just("norm"), st.sampled_from(["batch", "group", "instance", "frozen"])),
    st.tuples(st.just("rectify"), RECTIFIERS),
    st.tuples(st.just("add"), st.integers(0, 7)),
    st.tuples(st.just("add_"), st.integers(0, 7)),
    st.tuples(st.just("cat"), st.integers(0, 7)),
    st.tuples(st.just("pool"), st.sampled_from(["max", "avg"])),
    st.tuples(st.just("again"), st.integers(0, 7)),
    st.tuples(st.just("gate"), st.integers(0, 7)),
    st.tuples(st.just("drop"), st.just(0)),
)


class Drawn(nn.Module):
    """Runs a drawn list of steps; each may read the result of an earlier one."""

    def __init__(self, steps: list[tuple[str, object]]) -> None:
        super().__init__()
        self.steps = steps
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.layers = nn.ModuleDict()
        for i, (kind, option) in enumerate(steps):
            layer = self._layer(kind, option)
            if layer is not None:
                self.layers[str(i)] = layer
        self.head = nn.Linear(WIDTH, 3)

    def _layer(self, kind: str, option: object) -> nn.Module | None:
        if kind == "conv":
            size, groups = option  # type: ignore[misc]
            return nn.Conv2d(WIDTH, WIDTH, size, padding=size // 2, groups=groups)
        if kind == "norm":
            if option == "group":
                return nn.GroupNorm(2, WIDTH)
            if option == "instance":
                return nn.InstanceNorm2d(WIDTH, affine=True)
            norm = nn.BatchNorm2d(WIDTH)
            return norm.eval() if option == "frozen" else norm
        if kind == "cat":
            return nn.Conv2d(2 * WIDTH, WIDTH, 1)
        if kind == "drop":
            return nn.Dropout2d(0.5)
        modules = {"module": nn.ReLU(), "module_": nn.ReLU(inplace=True), "prelu": nn.PReLU(WIDTH)}
        return modules.get(str(option)) if kind == "rectify" else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        past = [x]
        for i, (kind, option) in enumerate(self.steps):
            layer = self.layers._modules.get(str(i))
            x = self._step(kind, option, layer, x, past)
            past.append(x)
        return self.head(x.mean((2, 3)))

    def _step(
        self, kind: str, option: object, layer: nn.Module | None, x: Tensor, past: list[Tensor]
    ) -> Tensor:
        if kind == "rectify" and layer is None:
            functions = {
                "relu": F.relu, "relu_": F.relu_, "gelu": F.gelu, "silu": F.silu,
                "leaky": F.leaky_relu, "clamp": lambda t: t.clamp(min=0), "relu6": F.relu6,
            }  # fmt: skip
            return functions[str(option)](x)
        if kind == "pool":
            pool = F.max_pool2d if option == "max" else F.avg_pool2d
            return pool(x, 3, stride=1, padding=1)
        if kind in ("conv", "norm", "rectify", "drop"):
            assert layer is not None
            return layer(x)
        assert isinstance(option, int)
        other = past[option % len(past)]
        if kind == "add":
            return x + other
        if kind == "add_":
            return x.add_(other)
        if kind == "cat":
            assert layer is not None
            return layer(torch.cat([x, other], 1))
        if kind == "gate":
            return x * torch.sigmoid(other.mean((2, 3), keepdim=True))
        convolutions = [m for m in self.layers.values() if isinstance(m, nn.Conv2d)]
        fitting = [m for m in convolutions if m.in_channels == WIDTH] or [nn.Identity()]
        return fitting[option % len(fitting)](x)


def trains(model: nn.Module, x: Tensor) -> bool:
    """Whether autograd takes the drawn model: it refuses some in-place writes."""
    try:
        model(x).sum().backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
    return True


@pytest.mark.long
@settings(
    max_examples=12, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(st.lists(STEPS, min_size=1, max_size=9))
def test_a_drawn_network_is_captured_to_the_bit(steps: list[tuple[str, object]]) -> None:
    torch.manual_seed(0)
    model = settled(Drawn(steps))
    x = torch.randn(2, 3, 5, 5)
    network = captured(model, x, train=trains(model, x))
    assert len({site.name for site in network.sites}) == len(network.sites)
