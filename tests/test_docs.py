"""What the documentation says is what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch import nn

import shoal
from scripts import script

TOP = Path(__file__).resolve().parents[1]


def test_the_tables_of_options_are_those_of_the_code() -> None:
    options = script("docs/options.py")
    assert options.PAGE.read_text(encoding="utf-8") == options.page(), (
        "docs/options.md is out of date: run `python docs/options.py`"
    )


PAGES = [*TOP.glob("*.md"), *(TOP / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    rooms = "|".join(p.name for p in (TOP / "src" / "shoal").iterdir() if p.is_dir())
    files = re.findall(rf"`((?:src/shoal/)?(?:(?:{rooms})/)\w+\.py)`", text)
    files += re.findall(r"`((?:benchmarks|examples|tests|docs)/[\w/]+\.py)`", text)
    inside = [TOP, TOP / "src" / "shoal"]
    assert [f for f in files if not any((top / f).is_file() for top in inside)] == []


def test_one_version() -> None:
    log = (TOP / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", log, re.M)[0]
    citation = (TOP / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {released}\n" in citation
    version = Version(shoal.__version__)
    unreleased = "\n## [Unreleased]\n" in log
    assert (version > Version(released), version.is_devrelease) == (unreleased, unreleased)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")
def test_a_network_is_quantized_as_the_page_on_export_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    text = (TOP / "docs" / "export.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text.split("## int8")[1], re.S)[0]
    torch.manual_seed(0)
    images = torch.randn(8, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten())
    net = shoal.capture(model.eval(), images)
    monkeypatch.chdir(tmp_path)
    exec(code, {"shoal": shoal, "net": net, "train": [(images, torch.zeros(8))], "images": images})
    shoal.export(net, "model.onnx")
    assert Path("int8.onnx").stat().st_size < 0.6 * Path("model.onnx").stat().st_size
    session = onnxruntime.InferenceSession("int8.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    wanted = net(images).detach()
    assert float((torch.from_numpy(found) - wanted).norm() / wanted.norm()) < 0.1
