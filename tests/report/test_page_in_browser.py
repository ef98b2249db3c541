"""The page in headless Chromium: nothing is cut off, every text can be read, no errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from browser import BROWSER, assert_all_can_be_read
from test_run_tables import record, step

from shoal.report import write_page
from shoal.search.layers import Layer, RegionTime

pytestmark = pytest.mark.skipif(BROWSER is None, reason="Chromium is not installed")


@pytest.mark.long
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_all_can_be_read(tmp_path: Path, width: int, scheme: str) -> None:
    long = "layer1.0.a_rather_long_name_of_a_module.conv"
    shown = replace(
        record(step(0), step(1, names=(long,) * 3), step(2, within=False)),
        folder=tmp_path,
        layers=tuple(Layer(f"{long}.{i}", "conv 3×3, 16 → 16", "kept", 5) for i in range(60)),
        merged_layers=(Layer(f"{long}.0", "conv 3×3, 16 → 16", "merged", 5),),
        regions=(RegionTime(long, 1.0, 0.5), RegionTime("", 0.1, 0.0)),
    )
    (tmp_path / "config.yaml").write_text(
        "model: timm:resnet18\ndata: folder:photos\nmax_drop: 1.0\n"
    )
    page = write_page(shown)
    assert_all_can_be_read(page, width, scheme)
