"""What the names in a file of weights say: wrappers, counters, masks, averaged copies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# What DataParallel, torch.compile, FSDP and activation checkpointing insert into parameter names.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# Of batch norms, averaging, thop, EMA libraries; of Hugging Face's embeddings: 0, 1, 2, …
# Batch norms count since torch 0.4.1; nothing depends on it while momentum is a number.
_COUNTERS = {"num_batches_tracked", "n_averaged", "num_updates", "initted", "position_ids"}
_COUNTERS |= {"total_ops", "total_params"}

_AVERAGED = {"ema", "averaged", "average", "avg", "swa", "teacher", "shadow", "momentum", "target"}


def is_counter(name: str) -> bool:
    """Return whether a tensor of this name counts something and is no weight."""
    return name.rpartition(".")[2] in _COUNTERS


def is_averaged(name: str) -> bool:
    """Return whether a name says that what it stands for is an average over training."""
    return not _AVERAGED.isdisjoint(re.split(r"[._]", name.lower()))


def without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights without the wrappers' parts inside their names; None if there is none."""
    plain = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): tensor
        for name, tensor in weights.items()
    }
    return plain if plain.keys() != weights.keys() and len(plain) == len(weights) else None


def with_masks(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights with masks applied as `torch.nn.utils.prune` does; None without any.

    `x_orig` times `x_mask` is `x`. A mask beside `x` itself goes if `x` is zero where it is.
    """
    result = dict(weights)
    for name, mask in weights.items():
        base = name.removesuffix("_mask")
        whole, original = weights.get(base), weights.get(f"{base}_orig")
        masked = original if whole is None else whole
        if base == name or masked is None or masked.shape != mask.shape:
            continue
        if not bool(((mask == 0) | (mask == 1)).all()):
            continue
        if whole is None:
            result[base] = masked * mask.to(masked.dtype)
            del result[name], result[f"{base}_orig"]
        elif original is None and not bool(whole[mask == 0].any()):
            del result[name]
    return result if result.keys() != weights.keys() else None


def left_over(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Return names that the model lacks and can do without: no weight of its own is among them.

    These are counters, averaged copies of the model's own weights ("ema_conv_weight"), and
    `buffers` that the model makes for itself, with the same values.
    """
    others = [name for name in weights if name not in own]
    copies = copies_among(others, {name for name in own if name in weights})

    def is_made(name: str) -> bool:
        made = buffers.get(name)
        return (
            made is not None
            and made.shape == weights[name].shape
            and made.dtype == weights[name].dtype
            and torch.equal(made.cpu(), weights[name])
        )

    return tuple(n for n in others if n in copies or is_counter(n) or is_made(n))


def copies_among(names: Iterable[str], own: Iterable[str]) -> set[str]:
    """Return the names that say they are averages of weights called `own`.

    Libraries of averages put words before a name, and underscores or nothing for its dots.
    """
    squashed = {re.sub(r"[._]", "", name) for name in own}
    found = set()
    for name in filter(is_averaged, names):
        words = re.split(r"[._]", name)
        if any("".join(words[start:]) in squashed for start in range(1, min(len(words), 5))):
            found.add(name)
    return found
