from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")
def test_quantizing_keeps_the_accuracy_and_shrinks_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    arguments = ["--epochs", "2", "--images", "128", "--min-seconds", "0", "--out", str(tmp_path)]
    eager, fp32, int8 = load_example("quantize").main(arguments)
    assert fp32.top1 == eager.top1
    assert eager.top1 > 80
    assert abs(int8.top1 - fp32.top1) <= 2  # 270 test images: 5 of them
    assert int8.bytes < 0.6 * fp32.bytes
    for row in (eager, fp32, int8):
        assert all(math.isfinite(row.latency[size].median_ms) for size in (1, 64))
    assert "int8, ONNX Runtime" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fp32.onnx", "int8.onnx"]
