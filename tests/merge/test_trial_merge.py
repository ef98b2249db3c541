"""A trial merge joins what `merge_` joins, on a network that is folded already."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from shoal.measure import compare_outputs, deployments, depth
from shoal.merge.cut import LatencyCosts, LayerCosts
from shoal.merge.merge import merge_, trial_merge_
from shoal.network import capture
from shoal.surgery import linearize_


@pytest.mark.parametrize("join", [True, False])
def test_it_cuts_as_merge_cuts(join: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    power = 0 if join else 20  # every layer costs the same, or large ones far more
    monkeypatch.setattr(
        LatencyCosts, "map_ms", lambda self, found, node: float(found.weight.numel()) ** power
    )
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
    ]
    images = torch.randn(4, 3, 8, 8)
    network = capture(nn.Sequential(*layers).eval(), images)
    linearize_(network, "2", loader=[(images, None)])
    folded, merged = network.copy(), network.copy()
    merge_(folded, policy="fold")
    trial = trial_merge_(folded, LayerCosts(folded, deployments()))
    report = merge_(merged, policy="always" if join else "fold")
    assert depth(trial) == report.depth_after == (2 if join else 3)
    assert compare_outputs(network, trial, [images]).max_rel_error < 1e-5
