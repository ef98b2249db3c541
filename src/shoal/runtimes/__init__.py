"""Exporting: a network as one `.onnx` or `.pt2` file that is proven to compute the same.

The package is not called `export`, so that `shoal.export` is the function and never a module.
"""

from __future__ import annotations

from shoal.runtimes.export import ExportReport, export

__all__ = ["ExportReport", "export"]
