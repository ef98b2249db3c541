"""How good a network's answers are: its logits, their losses sample by sample, its accuracy."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import ConfigError, DataError, OptionError, TrainingError
from shoal.modes import eval_mode, placed
from shoal.options.training import PRECISIONS
from shoal.passes.batches import Batches
from shoal.seeds import preserved_rng


@dataclass(frozen=True)
class Evaluation:
    """How good a network is on some data."""

    top1: float  # accuracy in percent
    loss: float  # mean cross-entropy per sample, in nats
    samples: int
    correct: int  # samples whose largest output is at the label

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def evaluate(
    network: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    limit: int | None = None,
) -> Evaluation:
    """Return accuracy and loss of `network` in eval mode.

    A loader with `plain()` (shoal's own) is read without shuffling and augmentation. Of several
    processes each evaluates every n-th batch and gets the result of one process. For that, the
    loader must give all of them the same batches: do not shuffle or shard it.

    Args:
        network: a classifier; its training flags, and the global random state, are the same
            afterwards.
        loader: batches of inputs and labels.
        device: where to evaluate; None means where the network is. The network goes back.
        precision: "fp32", "bf16", "fp16" or "auto", as in a recipe.
        limit: use the first samples only, this many.

    Raises:
        DataError: there is no sample, or a label is outside the network's outputs.
        ConfigError: `limit` is below 1, or the device cannot compute in `precision`.
    """
    if limit is not None and limit < 1:
        raise OptionError("limit", limit, "at least 1 sample, or None for all")
    # Not inference_mode: what a module keeps from such a pass (a table of positions, say) could not
    # take part in training later.
    with (
        placed(network, device) as where,
        eval_mode(network),
        preserved_rng(where),
        torch.no_grad(),
    ):
        chosen = resolve_precision(precision, where)
        batches = Batches(loader, where, samples=limit, stratified=False, purpose="evaluate on")
        rows = [  # loss and hits of each batch; zeros for another process's
            (0.0, 0.0) if batch is None else _measure(network, batch, where, chosen)
            for _, batch in batches.turns()
        ]
    # Each row comes from one process, so that the sum over processes rounds nothing.
    table = sum_across(torch.tensor(rows, dtype=torch.float64))
    loss, hits = table.sum(dim=0).tolist()
    samples = batches.seen
    return Evaluation(100.0 * hits / samples, loss / samples, samples, int(hits))


def _measure(
    network: nn.Module, batch: Batch, device: torch.device, precision: str
) -> tuple[float, float]:
    with autocast(precision, device):
        logits = logits_of(network(*batch.args, **batch.kwargs))
    target = check_targets(logits, batch.target)
    return float(sample_losses(logits, target).sum()), float(hits(logits, target).sum())


def logits_of(output: Any) -> Tensor:
    """Return the logits in an output: itself, "logits" of a mapping, or the first tensor."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if isinstance(output.get("logits"), Tensor):
            return output["logits"]
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        for value in output:
            if isinstance(value, Tensor):
                return value
    raise TrainingError(
        f"the network returned a {type(output).__name__} without a tensor: "
        "it must return logits, or a tuple or dict that holds them"
    )


def check_targets(logits: Tensor, target: Tensor | None) -> Tensor:
    """Return `target`, class indices `[B]` or probabilities `[B, classes]`, if it fits `logits`.

    The logits are `[B, classes]`, and class indices must lie in their range: on a GPU a wrong one
    would end the process, not the call.
    """
    if logits.ndim != 2:
        raise DataError(
            f"the network's output has shape {list(logits.shape)}, not [batch, classes]: "
            "give a network that classifies"
        )
    if target is None:
        raise DataError("the batches have no target: let the loader yield (inputs, labels)")
    if target.is_floating_point():
        if target.shape != logits.shape:
            raise DataError(
                f"soft targets have shape {list(target.shape)} but the outputs "
                f"{list(logits.shape)}: give one probability per class"
            )
        return target
    if target.ndim != 1 or target.dtype == torch.bool:
        raise DataError(
            f"labels have shape {list(target.shape)} and type {target.dtype}: "
            "give class indices [batch] or probabilities [batch, classes]"
        )
    outputs = logits.shape[1]
    low, high = map(int, target.aminmax()) if len(target) else (0, 0)
    if low < 0 or high >= outputs:
        raise DataError(
            f"label {low if low < 0 else high} is outside the network's {outputs} outputs "
            f"(0 to {outputs - 1}): check the labels, or the network's number of classes"
        )
    return target


def sample_losses(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy of each sample, `[B]`, in fp32 or better.

    Takes targets as `check_targets` does; `smoothing` is their share that is spread evenly over the
    classes.
    """
    logits = _at_least_fp32(logits)
    wanted = target.to(logits.dtype) if target.is_floating_point() else target.long()
    return F.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="none")


def distillation_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) of the softened outputs for each sample, `[B]`.

    The form of Hinton et al. 2015, of logits `[B, classes]` that the temperature T divides: the
    factor T² keeps the gradient's size independent of T, and the gradient is zero where both agree.
    """
    if student.shape != teacher.shape:
        raise TrainingError(
            f"the teacher's outputs have shape {list(teacher.shape)} but the network's "
            f"{list(student.shape)}: give a teacher of the same task"
        )
    log_student = F.log_softmax(_at_least_fp32(student) / temperature, dim=1)
    log_teacher = F.log_softmax(_at_least_fp32(teacher) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return divergence.sum(dim=1) * temperature**2


def hits(logits: Tensor, target: Tensor) -> Tensor:
    """Return whether each sample has its largest logit at the target, `[B]`."""
    wanted = target.argmax(dim=1) if target.is_floating_point() else target
    return logits.argmax(dim=1) == wanted


def _at_least_fp32(values: Tensor) -> Tensor:
    # A softmax in half precision loses digits.
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def resolve_precision(asked: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16" for what was `asked` on `device`.

    "auto" is what `accelerate launch --mixed_precision` asked for, if it did; otherwise bf16 where
    the hardware computes in it (AVX512-BF16 or AMX on CPUs, CUDA from Ampere on), else fp32. Only
    CUDA takes fp16: its small range needs loss scaling, and a CPU gains nothing by it.
    """
    if asked not in PRECISIONS:
        raise ConfigError(f"precision is {asked!r}: choose one of {', '.join(PRECISIONS)}")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "auto")
    chosen = launched if asked == "auto" else asked
    if chosen not in ("fp32", "bf16", "fp16"):
        chosen = "bf16" if _has_bf16(device) else "fp32"
    if chosen == "fp16" and device.type != "cuda":
        raise ConfigError(
            f"precision 'fp16' needs a CUDA device, not '{device.type}': use 'bf16' or 'fp32'"
        )
    return chosen


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a forward pass computes in `precision` (resolved).

    Weights stay fp32; autocast converts on the way.
    """
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


def _has_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware (emulation is slower than fp32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # These are private names of torch: one that disappears means "not known", so fp32.
        probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, bool)() for name in probes)
    return False
