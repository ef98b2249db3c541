"""In which number format the arithmetic runs. Weights stay fp32; autocast converts on the way."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from shoal.errors import ConfigError
from shoal.options.training import PRECISIONS

__all__ = ["autocast", "resolve_precision"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(asked: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16" for what was `asked` on `device`.

    "auto" is what `accelerate launch --mixed_precision` asked for, if it did; otherwise bf16 where
    the hardware computes in it (AVX512-BF16 or AMX on CPUs, CUDA from Ampere on), else fp32.

    Raises:
        ConfigError: an unknown precision, or fp16 on a device other than CUDA: its small range
            needs loss scaling, and a CPU gains nothing by it.
    """
    if asked not in PRECISIONS:
        raise ConfigError(f"precision is {asked!r}: choose one of {', '.join(PRECISIONS)}")
    chosen = asked
    if chosen == "auto":
        chosen = os.environ.get("ACCELERATE_MIXED_PRECISION", "auto")
    if chosen not in ("fp32", "bf16", "fp16"):
        chosen = "bf16" if _has_bf16(device) else "fp32"
    if chosen == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"precision 'fp16' needs a CUDA device, not '{device.type}': use 'bf16' or 'fp32'"
        )
    return chosen


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes in `precision` (resolved)."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


def _has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware (emulation is slower than fp32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # These are private names of torch: one that disappears means "not known", so fp32.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in probes)
    return False
