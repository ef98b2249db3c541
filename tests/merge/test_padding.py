"""Padding is moved to the convolution before, where the two then become one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shoal
from changed import changed
from shoal.errors import PlanError
from shoal.merge.cut import LatencyCosts
from shoal.merge.format1 import replay_
from shoal.merge.merge import merge_
from shoal.merge.padding import find_movable_paddings, move_paddings_
from shoal.network import Network, capture
from shoal.surgery import linearize_


def pair(stride: int = 1, kernel: int = 3) -> Network:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, stride, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, kernel, 1, kernel // 2),
        nn.ReLU(),
    ]
    network = capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9))
    return changed(linearize_, network, "2", loader=[(torch.randn(16, 3, 9, 9), None)])


@pytest.fixture
def cheap_joins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every layer takes one millisecond, so fewer layers are always faster."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    monkeypatch.setattr(LatencyCosts, "map_ms", lambda self, found, node: 1.0)


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5)])
@pytest.mark.usefixtures("cheap_joins")
def test_after_moving_the_two_merge_exactly_into_one(stride: int, kernel: int) -> None:
    network = pair(stride, kernel)
    before = merge_(network.copy(), policy="always")
    assert before.depth_after == 2
    found = find_movable_paddings(network)
    assert found == [("0", "3")]
    move_paddings_(network, found)
    report = merge_(network, policy="always")
    assert report.depth_after == 1
    assert report.max_rel_error_float64 is not None
    assert report.max_rel_error_float64 < 1e-10


@pytest.mark.usefixtures("cheap_joins")
def test_only_the_borders_change() -> None:
    network = pair()
    images = torch.randn(4, 3, 9, 9)
    with torch.no_grad():
        before = network(images)
        after = move_paddings_(network, find_movable_paddings(network))(images)
    assert after.shape == before.shape
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(after[inside], before[inside])
    assert not torch.allclose(after, before)


@pytest.mark.usefixtures("cheap_joins")
def test_a_block_with_its_skip_becomes_one_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(4, 4, 3, 1, 1)
            self.relu = nn.ReLU()
            self.conv2 = nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.conv2(self.relu(self.conv1(x))))

    torch.manual_seed(0)
    network = capture(Block().eval(), torch.randn(2, 4, 8, 8))
    linearize_(network, "relu", how="identity")
    move_paddings_(network, find_movable_paddings(network))
    report = merge_(network, policy="always")
    assert report.depth_after == 1


def test_where_a_merge_would_not_be_faster_nothing_moves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    monkeypatch.setattr(
        LatencyCosts, "map_ms", lambda self, found, node: float(found.weight.numel()) ** 2
    )
    assert find_movable_paddings(pair()) == []


@pytest.mark.usefixtures("cheap_joins")
def test_it_stays_moved_when_saved(tmp_path: Path) -> None:
    network = pair()
    base = network.copy()
    move_paddings_(network, find_movable_paddings(network))
    shoal.save(network, tmp_path / "net")
    again = shoal.load(tmp_path / "net")
    images = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(again(images), network(images), rtol=0, atol=0)
    assert base.plan.operations == network.plan.operations[:-1]


@pytest.mark.parametrize("pooling", [nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2, 1)])
@pytest.mark.usefixtures("cheap_joins")
def test_padding_does_not_move_across_pooling(pooling: nn.Module) -> None:
    """More padding before a pooling is not a wider border after it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), pooling, nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()]
    network = capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9))
    assert find_movable_paddings(network) == []
    with pytest.raises(PlanError, match="not consecutive convolutions"):
        move_paddings_(network, [("0", "2")])
    network.plan.record("pad", ("0", "2"))  # a plan written elsewhere
    with pytest.raises(PlanError, match="not consecutive convolutions"):
        replay_(capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9)), network.plan)


def test_what_is_no_pair_is_refused() -> None:
    with pytest.raises(PlanError, match="not consecutive convolutions"):
        move_paddings_(pair(), [("3", "0")])
