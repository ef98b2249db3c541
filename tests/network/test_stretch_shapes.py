"""The layer of a stretch gives the stretch's output size at every size of the input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from network_checks import Call
from torch import Tensor, nn

import shoal


def conv(*args: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*args, **options)


LAYERS = {
    "an even kernel with a stride": (
        conv(3, 8, 2, stride=2), nn.ReLU(), conv(8, 8, 3, padding=1),
    ),
    "an even kernel at the end": (
        conv(3, 8, 3, padding=1), nn.ReLU(), conv(8, 8, 4, stride=2, padding=1),
    ),
    "a pool between": (
        nn.Sequential(conv(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8, 3)),
        conv(8, 4, 1),
    ),
    "a pool that rounds up": (
        nn.Sequential(
            conv(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True), conv(8, 8, 3),
        ),
        conv(8, 4, 1),
    ),
    "a pool with holes": (
        nn.Sequential(
            conv(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, dilation=2), conv(8, 8, 3),
        ),
        conv(8, 4, 1),
    ),
    "a stride of three": (conv(3, 8, 3, stride=3), nn.ReLU(), conv(8, 8, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("captured_at", [16, 17])
def test_of_layers_in_a_row(name: str, captured_at: int) -> None:
    model = nn.Sequential(*LAYERS[name]).eval()
    net = shoal.capture(model, torch.randn(2, 3, captured_at, captured_at))
    for stretch in net.stretches:
        whole = net if stretch.start.op == "placeholder" else None
        assert whole is not None
        layer = stretch.shape.make()
        end = str(stretch.end.target)
        taken: list[Tensor] = []
        handle = net.get_submodule(end).register_forward_hook(
            lambda module, inputs, output, taken=taken: taken.append(output)
        )
        for size in range(14, 24):
            x = torch.randn(1, 3, size, size)
            net(x)
            assert layer(x).shape == taken.pop().shape, (stretch.name, size)
        handle.remove()


def test_a_strided_pair_with_an_even_kernel_is_offered_and_holds_at_other_sizes() -> None:
    model = nn.Sequential(*LAYERS["an even kernel with a stride"]).eval()
    net = shoal.capture(model, torch.randn(2, 3, 16, 16))
    shapes = [net(torch.randn(1, 3, size, size)).shape for size in (16, 17, 18, 19)]
    shoal.collapse_(net, "0..2", [torch.randn(160, 3, 16, 16)])
    assert [net(torch.randn(1, 3, size, size)).shape for size in (16, 17, 18, 19)] == shapes


def test_a_slice_that_ends_early_is_followed_or_not_offered() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x))[:, :, :-1, :-1])

    inner = Call(forward, a=conv(3, 8, 3, padding=1), b=conv(8, 8, 3, stride=2, padding=1))
    net = shoal.capture(nn.Sequential(inner).eval(), torch.randn(2, 3, 16, 16))
    for stretch in net.stretches:
        layer = stretch.shape.make()
        for size in range(14, 20):
            x = torch.randn(1, 3, size, size)
            assert layer(x).shape == net(x).shape


class Positions(nn.Module):
    """Adds a table of positions to what has a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, 8))
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x) + self.table))


@pytest.mark.parametrize(("positions", "offered"), [(1, False), (6, True)])
def test_a_linear_stretch_gives_a_vector_for_each_that_it_takes(
    positions: int, offered: bool
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Positions(), nn.Linear(8, 3))
    net = shoal.capture(model.eval(), torch.randn(2, positions, 4))
    assert bool(net.stretches) == offered
