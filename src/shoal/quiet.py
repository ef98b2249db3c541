"""PyTorch's own talk while it exports or compiles, which the user can do nothing about."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_TALKATIVE = (
    "onnx_ir",
    "onnxscript",
    "torch._dynamo",
    "torch._export",
    "torch._inductor",
    "torch._subclasses",
    "torch._subclasses.fake_tensor",
    "torch.export",
    "torch.fx",
    "torch.fx.experimental.symbolic_shapes",
    "torch.onnx",
)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence warnings, logs and what is printed to standard error; errors come out as errors."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
