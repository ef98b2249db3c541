"""The smooth stand-in for the entropy: what it tends to, and where its gradient pushes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shoal.importance.entropy import binary_entropy
from shoal.importance.soft_entropy import soft_entropy


def drawn(dims: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = {2: (400, 5), 3: (40, 10, 5), 4: (40, 5, 4, 3)}[dims]
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    means = torch.tensor([-2.0, -0.5, 0.0, 0.7, 3.0], dtype=torch.float64)
    return z + means.view([1, 5, 1, 1] if dims == 4 else [5])


def counted(z: Tensor, dim: int) -> float:
    rows = z.movedim(dim, -1).flatten(0, -2)
    return float(binary_entropy((rows > 0).sum(0), (rows < 0).sum(0)).mean())


@pytest.mark.parametrize(("dims", "channel_dim"), [(2, 1), (3, 2), (4, 1)])
def test_it_tends_to_the_entropy(dims: int, channel_dim: int) -> None:
    z = drawn(dims)
    wanted = counted(z, channel_dim)
    errors = [abs(float(soft_entropy(z, channel_dim, tau)) - wanted) for tau in (1, 0.1, 1e-2)]
    assert errors == sorted(errors, reverse=True)
    assert float(soft_entropy(z, channel_dim, 1e-8)) == pytest.approx(wanted, abs=1e-9)


def test_its_gradient_pushes_every_channel_away_from_half() -> None:
    z = drawn().requires_grad_()
    before = soft_entropy(z, tau=0.3)
    before.backward()
    assert z.grad is not None
    moved = (z - 50.0 * z.grad).detach()
    assert float(soft_entropy(moved, tau=0.3)) < before.item()
    scale = 0.3 * float(z.detach().std(correction=0))
    on, later = (torch.sigmoid(v.detach() / scale).mean((0, 2, 3)) for v in (z, moved))
    assert bool(((later - 0.5).abs() > (on - 0.5).abs()).all())


def test_scaling_the_input_changes_nothing() -> None:
    """Nor does the gradient ask for it."""
    z = drawn().requires_grad_()
    found = soft_entropy(z)
    found.backward()
    assert float(soft_entropy(7 * z.detach())) == pytest.approx(found.item(), rel=1e-12)
    assert z.grad is not None
    assert float((z.grad * z.detach()).sum()) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_it_is_finite_where_nothing_varies(value: float) -> None:
    z = torch.full((8, 3), value, requires_grad=True)
    found = soft_entropy(z)
    found.backward()
    assert float(found.detach()) == pytest.approx(1.0 if value == 0 else 0.0, abs=1e-5)
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())
