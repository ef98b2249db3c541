"""A folder of format 1, a plan and weights, is replayed on its base and runs no code of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import shoal
from shoal.errors import PlanError
from shoal.merge.loading import load
from small_runs import same_weights

FORMAT_1 = Path(__file__).parent / "format1"
EXPECTED = [
    [0.44074, -5.93316, 10.95597, -5.72350, -6.82604],
    [0.69155, -3.04100, 5.95828, -3.33435, -1.68550],
]


@pytest.mark.long
def test_a_folder_of_format_1_is_replayed_on_its_base() -> None:
    """It was linearized both ways, dropped, collapsed, its padding moved, and merged."""
    network = load(FORMAT_1)
    kinds = ["linearize", "linearize", "drop", "collapse", "pad", "merge"]
    assert [operation.kind for operation in network.plan.operations] == kinds
    x = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)
    expected = torch.tensor(EXPECTED)
    torch.testing.assert_close(network(x)[:, :5], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(PlanError, match="was made from another model"):
        load(FORMAT_1, model=shoal.models.cifar_resnet20(width=5))
    own = load(FORMAT_1, model=shoal.models.cifar_resnet20(width=4))
    assert same_weights(own, network)


@pytest.mark.long
def test_an_old_folder_without_a_base_needs_the_model(tmp_path: Path) -> None:
    old = Path(shutil.copytree(FORMAT_1, tmp_path / "old"))
    text = (old / "plan.json").read_text()
    (old / "plan.json").write_text(text.replace('"shoal:cifar_resnet20?width=4"', "null"))
    with pytest.raises(PlanError, match="give it as model="):
        load(old)
    load(old, model=shoal.models.cifar_resnet20(width=4))
    (old / "plan.json").write_text(text.replace('"linearize"', '"vaporize"', 1))
    with pytest.raises(PlanError, match="does not know: update shoal"):
        load(old)
    (old / "plan.json").write_text(text.replace('"layer1.0.relu"', '"layer9.relu"', 1))
    with pytest.raises(PlanError, match="does not fit this model"):
        load(old)


@pytest.mark.parametrize(
    "base",
    [
        "mine:build",
        "folder/mine.py:build",
        "os:mkdir?path=made",
        "timm:resnet18?checkpoint_path=evil.pth",
        "timm:local-dir:folder",
        "hf:nobody/nothing",
        "shoal:cifar_resnet20?width=1000000000",
    ],
)
def test_an_old_folder_runs_no_code_that_it_names(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    old = Path(shutil.copytree(FORMAT_1, tmp_path / "folder"))
    for place in (tmp_path, old):
        (place / "mine.py").write_text("open('made', 'w')")
    text = (old / "plan.json").read_text()
    (old / "plan.json").write_text(text.replace("shoal:cifar_resnet20?width=4", base))
    with pytest.raises(PlanError, match=r"only where you say so.*model=, or .*trust=True"):
        load(old)
    structure = text.replace("builtins.tuple", "mine.Inputs")
    (old / "plan.json").write_text(structure)
    with pytest.raises(PlanError, match="does not describe the inputs"):
        load(old)
    assert not (tmp_path / "made").exists()


@pytest.mark.long
def test_an_old_folder_that_is_trusted_builds_its_base_by_its_own_code(tmp_path: Path) -> None:
    old = Path(shutil.copytree(FORMAT_1, tmp_path / "old"))
    (tmp_path / "mine.py").write_text(
        "import shoal\n\n\ndef build():\n    return shoal.models.cifar_resnet20(width=4)\n"
    )
    text = (old / "plan.json").read_text()
    base = f"{tmp_path / 'mine.py'}:build"
    (old / "plan.json").write_text(text.replace("shoal:cifar_resnet20?width=4", base))
    trusted, given = load(old, trust=True), load(old, model=shoal.models.cifar_resnet20(width=4))
    assert same_weights(trusted, given)


@pytest.mark.long
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"in_channels": 4', '"in_channels": 1000000000'),
        ('"in_channels": 4', '"in_channels": 200000, "device": "cpu"'),
        ('"shape": [\n          16,', '"shape": [\n          1000000000000,'),
        ('"shape": [\n          16,', '"shape": [\n          "16",'),
    ],
)
def test_an_old_folder_is_refused_before_it_takes_memory(
    old: str, new: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(FORMAT_1, tmp_path / "old"))
    text = (folder / "plan.json").read_text()
    assert old in text
    (folder / "plan.json").write_text(text.replace(old, new, 1))
    with pytest.raises(PlanError, match="damaged"):
        load(folder)
