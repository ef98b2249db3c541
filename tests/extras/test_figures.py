from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import shoal
from captures import resnet20
from changed import changed
from shoal.errors import ConfigError, ShoalError
from shoal.extras.figures import criteria_map, l1_by_stage
from shoal.importance import Scores, stages
from shoal.network import Network
from shoal.surgery import drop_


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet20()


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def test_stages_are_the_blocks_of_one_shape(network: Network) -> None:
    found = stages(network)
    assert [stage.title for stage in found] == ["4×16×16", "8×8×8", "16×4×4"]
    assert [stage.index for stage in found] == [0, 1, 2]
    assert found[1].blocks == ("layer2.0", "layer2.1", "layer2.2")
    assert found[1].removable == ("layer2.1", "layer2.2")
    smaller = changed(drop_, network.copy(), ["layer1.0", "layer1.1", "layer1.2"])
    assert [stage.title for stage in stages(smaller)] == ["8×8×8", "16×4×4"]


@pytest.mark.usefixtures("matplotlib")
def test_l1_by_stage_names_every_stage(network: Network, tmp_path: Path) -> None:
    path = l1_by_stage(network, tmp_path / "new" / "l1.svg")
    assert path.stat().st_size > 2000
    assert l1_by_stage(network, tmp_path / "l1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("matplotlib")
def test_criteria_side_by_side(network: Network, tmp_path: Path) -> None:
    scores = {name: shoal.score(network, (), name) for name in ("random", "l1", "last")}
    assert criteria_map(network, scores, tmp_path / "map.svg", remove=2).stat().st_size > 2000


@pytest.mark.usefixtures("matplotlib")
def test_wrong_figures_are_one_line(network: Network, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png"):
        l1_by_stage(network, tmp_path / "l1.gif")
    with pytest.raises(ConfigError, match="no scores"):
        criteria_map(network, {}, tmp_path / "map.png")
    with pytest.raises(ConfigError, match="no block of this network"):
        criteria_map(network, {"x": Scores("x", {"layer9": 1.0}, 1)}, tmp_path / "map.png")
    plain = shoal.capture(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(ConfigError, match="no residual block"):
        l1_by_stage(plain, tmp_path / "l1.png")


def test_a_missing_package_is_named(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ShoalError, match=r"shoal\[report\]"):
        l1_by_stage(network, tmp_path / "l1.png")
