"""Exports to ONNX in half the time: what PyTorch lists anew at each one is listed once.

An export to ONNX first lists all operators that can be translated, and all that can be decomposed:
0.5 s, whatever the network. What is listed does not change while tests run.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def list_once() -> None:
    """Let this process list these operators once; a PyTorch that does it otherwise stays as is."""
    import torch._export.utils as utils
    from torch.onnx._internal.exporter import _registration

    registry = getattr(_registration, "ONNXRegistry", None)
    if hasattr(registry, "from_torchlib"):
        listed = functools.cache(registry.from_torchlib)

        def from_torchlib(cls: Any, *given: Any, **options: Any) -> Any:
            made, known = cls(), listed(*given, **options)
            made._opset_version = known.opset_version
            made.functions = {name: list(found) for name, found in known.functions.items()}
            return made

        registry.from_torchlib = classmethod(from_torchlib)
    name = "_materialize_cpp_cia_ops"
    if hasattr(utils, name):
        setattr(utils, name, functools.cache(getattr(utils, name)))
