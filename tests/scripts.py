"""Programs beside the package, such as benchmarks, as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

TOP = Path(__file__).resolve().parents[1]


def script(path: str) -> ModuleType:
    """Return the program at a path below the repository as a module, without running `main`."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, TOP / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
