"""Modules that stand for a model but hold no forward pass to capture: what to give instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.export import ExportedProgram
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parallel import DistributedDataParallel

from shoal.errors import CaptureError

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def assert_capturable(model: Any) -> None:
    """Raise `CaptureError` if `model` is no module, or one made from the module to give instead."""
    if isinstance(model, ExportedProgram):
        raise CaptureError(f"the model is {_made_from('an ExportedProgram')}")
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture takes a torch.nn.Module, not {type(model).__name__}")
    for path, module in model.named_modules():
        reason = _reason(module)
        if reason:
            raise CaptureError(f"{f'the layer {path!r}' if path else 'the model'} is {reason}")
    for path, tensor in model.named_parameters():
        if type(tensor).__torch_dispatch__ != Tensor.__torch_dispatch__:
            raise CaptureError(
                f"the parameter '{path}' is a {type(tensor).__name__}, no ordinary tensor: give "
                "the model as it was before its weights were quantized or distributed"
            )


def _reason(module: nn.Module) -> str:
    """Return what a module is and what to do, if it cannot be captured; else an empty text."""
    if isinstance(module, torch.jit.ScriptModule):
        return _made_from("TorchScript")
    if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):
        return _made_from("a module of torch.export, which cannot be put in training mode")
    if isinstance(module, DistributedDataParallel | FullyShardedDataParallel):
        return f"wrapped in {type(module).__name__}: give model.module, the module inside"
    if type(module).__module__.startswith(_QUANTIZED):
        return f"quantized ({type(module).__name__}): give the float model that it was made from"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return "not initialized yet: call the model once on real inputs first"
    return ""


def _made_from(what: str) -> str:
    return f"{what}: give the torch.nn.Module that it was made from"
