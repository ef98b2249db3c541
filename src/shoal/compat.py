"""Import torchvision, timm and transformers, lazily, also beside a torch of another build.

PyPI's torchvision is built for CUDA. Beside a CPU-only torch its C++ library cannot load, and then
`import torchvision` fails because it registers shape functions for operators that the library was
to define. All that is missing are the operators' schemas; with them the models, the transforms and
the data sets work. The operators themselves (`torchvision.ops.nms`) stay unavailable.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import torch

from shoal.errors import ShoalError, missing_extra, summary

_MISSING_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# The definitions live as long as this object does.
_libraries: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return torchvision, imported so that it works beside a CPU-only torch too.

    Raises:
        ShoalError: torchvision is not installed, or does not fit the installed torch.
    """
    try:
        return _import("torchvision")
    except RuntimeError:  # it lacks operators: `_import` lets nothing else through
        for name in list(sys.modules):  # what the failed import left behind
            if name.partition(".")[0] == "torchvision":
                del sys.modules[name]
        # A fragment: the namespace may already be somebody else's.
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _MISSING_OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                library.define(name + _SCHEMA)
        _libraries.append(library)
        return _import("torchvision")


def import_timm() -> ModuleType:
    """Return timm, which itself imports torchvision.

    Raises:
        ShoalError: timm or torchvision is not installed, or does not fit the installed torch.
    """
    import_torchvision()
    return _import("timm")


def import_transformers() -> ModuleType:
    """Return transformers, which itself imports torchvision where it is installed.

    Raises:
        ShoalError: transformers is not installed, or does not fit the installed torch.
    """
    with suppress(ShoalError):
        import_torchvision()
    return _import("transformers")


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except (ImportError, RuntimeError) as error:
        if _lacks_operators(error):
            raise
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise missing_extra(package, package, f"a {package} model or transform") from None
        raise ShoalError(
            f"{package} is installed but cannot be imported beside torch {torch.__version__}: "
            f"{summary(error)}; install the release of {package} that belongs to this torch"
        ) from error


def _lacks_operators(error: BaseException) -> bool:
    """Whether an import failed only because torchvision's own library did not load."""
    return isinstance(error, RuntimeError) and any(
        f"operator torchvision::{name} does not exist" in str(error) for name in _MISSING_OPERATORS
    )


def with_torchvision(action: Callable[[], Any]) -> Any:
    """Run user code; if it cannot import torchvision, do that for it and run it again."""
    try:
        return action()
    except RuntimeError as error:
        if not _lacks_operators(error):
            raise
    import_torchvision()
    return action()
