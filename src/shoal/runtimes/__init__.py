"""Where networks run: one file per runtime, which makes a callable of a network, and exporting.

A runtime is a `Runtime`, registered under its name; what it makes of a network is a `Runner`.
Exporting writes a network as one `.onnx` or `.pt2` file that is proven to compute the same.
"""

from __future__ import annotations

from shoal.registry import import_modules
from shoal.runtimes.runtime import (
    EAGER,
    RUNTIMES,
    Runner,
    Running,
    Runtime,
    find_runtime,
    installed,
    register_runtime,
    title_of,
)
from shoal.runtimes.write import ExportReport, export

import_modules(__name__, __path__)

__all__ = [
    "EAGER",
    "RUNTIMES",
    "ExportReport",
    "Runner",
    "Running",
    "Runtime",
    "export",
    "find_runtime",
    "installed",
    "register_runtime",
    "title_of",
]
