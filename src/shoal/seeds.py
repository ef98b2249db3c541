"""Seeds that depend on what they are for and on nothing else, and the caller's random state.

`derive_seed` is for torch and for whatever is handed on as a number; `generator` for NumPy, where
an epoch, a batch and a sample each have their own stream. Both are the same in every process, run
and version of Python, and a change of either would change what every seed means.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from shoal.errors import OptionError


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on `parts` only, not on process or Python."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return the random generator of one purpose ("order", "augment", …) of the user's seed.

    The purpose keeps apart what else would draw the same; numbers are an epoch, a batch, a sample.
    """
    if seed < 0:
        raise OptionError("seed", seed, "a number of at least 0")
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed Python, NumPy, torch on the CPU and torch on `device`.

    Other devices are left alone, so that training on the CPU does not wake a GPU.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch (CPU and `device`) at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        if mps is not None:
            torch.mps.set_rng_state(mps)
