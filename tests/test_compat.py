from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from shoal import compat
from shoal.errors import ShoalError

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="timm or torchvision is not installed",
)


def run_fresh(code: str) -> str:
    """Run code in a Python of its own, where nothing has been imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.long
def test_importing_the_models_imports_neither_torchvision_nor_timm():
    code = (
        "import sys, shoal.models\n"
        "print([m for m in sys.modules if m.partition('.')[0] in ('torchvision', 'timm')])"
    )
    assert run_fresh(code) == "[]"


@pytest.mark.long
@needs_timm
def test_torchvision_and_timm_import_in_a_fresh_process_after_a_failed_attempt_too():
    code = """
try:
    import torchvision
except RuntimeError:
    pass
from shoal.models import import_timm, import_torchvision
first = import_torchvision()
assert import_torchvision() is first
timm = import_timm()
import torchvision.transforms.v2
assert torchvision is first
print(first.models.resnet18(num_classes=3).fc.out_features, timm.is_model("resnet18"))
"""
    assert run_fresh(code) == "3 True"


@pytest.mark.long
@needs_timm
def test_a_working_torchvision_is_left_alone():
    code = """
import sys, torch
library = torch.library.Library("torchvision", "DEF")  # a user's own remedy
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision
from shoal import compat
print(compat.import_torchvision() is torchvision, compat._libraries)
"""
    assert run_fresh(code) == "True []"


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch):
    def import_module(name: str):
        if name == package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(compat.importlib, "import_module", import_module)
    with pytest.raises(ShoalError, match=rf"pip install 'shoal\[{package}\]'"):
        getattr(compat, f"import_{package}")()


def test_another_failure_of_an_installed_package_is_one_line(monkeypatch):
    def import_module(name: str):
        raise RuntimeError("built for\nanother torch")

    monkeypatch.setattr(compat.importlib, "import_module", import_module)
    with pytest.raises(
        ShoalError, match=r"torchvision is installed but .* built for another torch"
    ):
        compat.import_torchvision()
