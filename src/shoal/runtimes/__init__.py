"""Where networks run: one file per runtime, which makes a callable of a network, and exporting.

A runtime is a `Runtime`, registered under its name; what it makes of a network is a `Runner`.
Exporting writes a network as one `.onnx` or `.pt2` file that is proven to compute the same.
"""

from __future__ import annotations

from shoal.runtimes.runtime import EAGER, RUNTIMES, Runner, Runtime, check_runtime, find_runtime
from shoal.runtimes.write import ExportReport, export

__all__ = [
    "EAGER",
    "RUNTIMES",
    "ExportReport",
    "Runner",
    "Runtime",
    "check_runtime",
    "export",
    "find_runtime",
]
