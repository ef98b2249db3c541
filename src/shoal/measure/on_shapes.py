"""Running a model on tensors that have a shape and no data, which computes nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from shoal.network.inputs import calling, map_tensors
from shoal.quiet import quietly

_log = logging.getLogger(__name__)

T = TypeVar("T")


def on_shapes(run: Callable[[Any, Any], T], args: Any, kwargs: Any, purpose: str) -> T:
    """Return what `run` does, called with arguments of the same shapes that hold no data.

    Where that fails, as where control flow depends on values, it is called with copies of the
    arguments themselves. The `purpose` is for the log.

    Raises:
        ConfigError: it fails with these, too.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    fake_args, fake_kwargs = map_tensors(fakes.from_tensor, (args, kwargs))
    try:
        with fakes, quietly():  # PyTorch prints a traceback of its own for a call that fails
            return run(fake_args, fake_kwargs)
    except Exception as error:  # whatever it is, the real run below decides whether it is the model
        _log.debug("%s on shapes alone failed, running the model instead: %s", purpose, error)
    with calling("the model"):
        return run(*map_tensors(torch.clone, (args, kwargs)))
