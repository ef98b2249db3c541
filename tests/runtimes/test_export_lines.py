"""Lines in exported files: with a slope for each channel, or one for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import shoal

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


class Scaled(nn.Module):
    """Brings pixels to [-1, 1] before a padded convolution, into which no shift can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(2 * x - 1).relu()


@pytest.mark.parametrize("policy", ["fold", "always"])
def test_a_line_of_one_number_for_all_channels_is_exported(policy: str, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 8, 8)
    network = shoal.capture(Scaled().eval(), images).copy()
    shoal.merge_(network, policy=policy)
    report = shoal.export(network, tmp_path / "net.onnx")
    assert report.max_rel_error is not None
    assert report.max_rel_error <= 1e-4
    found = shoal.benchmark(network, images, runtime="onnxruntime", min_seconds=0.0)
    assert found.latency.median_ms > 0.0
