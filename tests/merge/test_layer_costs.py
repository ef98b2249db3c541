"""What layers cost here: kept for later runs, and not believed where other work was in the way."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.measure import Latency
from shoal.merge.cut import LatencyCosts, LayerCosts
from shoal.merge.padding import find_movable_paddings
from shoal.network import Network
from shoal.report.merge_tables import merge_tables
from shoal.runtimes import Runtime, find_runtime
from shoal.search.moves import find_moves, saved_ms

BUSY = "the machine was busy"


class Mlp(nn.Module):
    """Two layers that are less work as one, and two that are more."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(4, 32), nn.Linear(32, 4)
        self.down, self.up = nn.Linear(4, 1), nn.Linear(1, 4)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(self.act(self.narrow(self.wide(x)))))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[str]]:
    """Let each layer take a millisecond, with a doubt or none; return what is timed."""
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))

    def by(doubt: str) -> list[str]:
        asked: list[str] = []

        def measure_latency(models: dict[str, Any], *_: Any, **__: Any) -> dict[str, Latency]:
            one = Latency(1.0, 1.0, 1.0, 3, 1, 1, "cpu", 1, (1.0,) * 3, disturbed=doubt)
            return dict.fromkeys(models, one)

        def measure_layer(models: dict[str, Any], *given: Any, **more: Any) -> dict[str, Latency]:
            asked.extend(map(repr, models.values()))
            return measure_latency(models, *given, **more)

        monkeypatch.setattr("shoal.merge.cut.measure_latency", measure_layer)
        monkeypatch.setattr("shoal.measure.deployment.measure_latency", measure_latency)
        return asked

    return by


def captured() -> Network:
    return shoal.capture(Mlp().eval(), torch.randn(3, 4)).copy()


def test_of_a_calm_machine_times_decide_and_are_kept(
    timed: Callable[[str], list[str]], tmp_path: Path
) -> None:
    asked = timed("")
    network = captured()
    report = shoal.merge_(network)
    assert asked
    assert report.depth_after == 2  # one layer takes less time than two, whatever its work
    assert report.layers_doubt == ""
    (file,) = tmp_path.glob("latency-*.json")
    asked = timed("")
    shoal.merge_(captured())
    assert not asked
    assert file.exists()


def test_of_a_busy_one_the_layers_work_decides_and_nothing_is_kept(
    timed: Callable[[str], list[str]], tmp_path: Path
) -> None:
    timed(BUSY)
    network = captured()
    report = shoal.merge_(network)
    # 4·32 + 32·4 products become 4·4; of 4·1 + 1·4 they would become 16, which is more.
    assert [m.layers for m in report.merged] == [("wide", "narrow")]
    assert {k.reason for k in report.kept if "down" in k.layers} == {
        "merging it with the next layer would be more work"
    }
    assert report.latency_doubt == report.layers_doubt == BUSY
    assert f"their work decided: {BUSY}" in str(merge_tables(report))
    assert not list(tmp_path.glob("latency-*.json"))
    timed("")  # calm again: what was left apart is timed and joined
    assert shoal.merge_(network).depth_after == 2


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        # of tokens: 20·12 + 12·20 products each become 20·20
        (nn.Sequential(nn.Linear(20, 12), nn.Linear(12, 20)), (5, 20)),
        # of an image, flattened: 196·16 + 16·16 products become 196·16
        (nn.Sequential(nn.Flatten(), nn.Linear(196, 16), nn.Linear(16, 16)), (4, 7, 7)),
    ],
)
def test_work_is_that_of_all_positions_and_no_channels(
    timed: Callable[[str], list[str]], model: nn.Module, shape: tuple[int, ...]
) -> None:
    timed(BUSY)
    network = shoal.capture(model.eval(), torch.randn(2, *shape)).copy()
    assert shoal.merge_(network).depth_after == 1


def test_on_a_busy_machine_no_padding_moves(timed: Callable[[str], list[str]]) -> None:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    network = shoal.capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 8, 8))
    timed(BUSY)
    assert find_movable_paddings(network) == []
    timed("")
    assert find_movable_paddings(network) == [("0", "1")]  # one layer takes half as long as two


def test_moves_are_compared_merged_alike(
    timed: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the machine is busy shows with a layer that only one of the moves makes."""
    network = captured()
    timed("")
    seen: list[str] = []
    prices = LayerCosts.prices

    def spied(self: Any, **how: Any) -> Any:
        found = prices(self, **how)
        seen.append(found.dearer)
        return found

    monkeypatch.setattr(LayerCosts, "prices", spied)
    timed(BUSY)
    saved_ms(network, find_moves(network, ["linearize"]), torch.randn(3, 4))
    assert seen == ["slower", "more work", "more work", "more work"]  # both networks, once more


def test_latencies_are_kept_apart_by_the_options_of_their_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("machine", "processor", "node"):
        monkeypatch.setattr(platform, part, lambda part=part: part)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    network = shoal.capture(nn.Linear(2, 2), torch.zeros(2, 2))

    def file(runtime: str | Runtime) -> str:
        return LatencyCosts(network, 1, runtime).path.name

    asked = ["eager", "eager?threads=1", "eager?channels_last=false"]
    assert len({file(runtime) for runtime in asked}) == len(asked)
    assert file(find_runtime("eager", threads=1)) == file("eager?threads=1")
    assert file("eager") == file("eager?channels_last=true")
