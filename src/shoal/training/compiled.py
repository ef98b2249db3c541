"""The forward pass with its loss compiled by `torch.compile`, where that was asked for or pays."""

from __future__ import annotations

import time
import types
from collections.abc import Callable

import torch
from torch import Tensor

from shoal.data.batch import Batch
from shoal.distributed import from_main
from shoal.errors import one_line
from shoal.network.own_code import with_own_code
from shoal.training.objective import Objective

BACKEND = "inductor"

_TRIED = 20  # steps that are timed, with and without
_WARM_UP = 5  # steps before them
_WORTH = 180.0  # seconds of training left, below which compiling does not pay for itself
_GAIN = 1.03  # uncompiled over compiled, from which on it stays
_UNCOMPILED = "the network trains uncompiled, as it cannot be compiled: "


class Compiling:
    """Runs an objective's passes, compiled or not, and says what it found.

    "auto" tries on CUDA alone, in a training that is long enough to pay: some steps are timed
    without and with, and the faster stays. Batches of another size than the first one run
    uncompiled, since each size would be compiled anew. What cannot be compiled trains uncompiled.

    Args:
        asked: "auto", "on" or "off".
        objective: of the fit.
        steps: how many passes the fit has in all.
        device: where it trains.
    """

    def __init__(self, asked: str, objective: Objective, steps: int, device: torch.device) -> None:
        self.notes: list[str] = []
        self._objective = objective
        self._left = steps
        self._device = device
        self._plain = objective.compute
        self._compiled: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._shapes: list[torch.Size] = []
        self._passes = 0  # since the start, or since compiling
        self._since = 0.0
        self._before: float | None = None  # seconds of an uncompiled step
        fits = asked == "auto" and device.type == "cuda" and steps > 3 * (_TRIED + _WARM_UP)
        self._stage = {"on": "compile", "off": "done"}.get(asked, "time" if fits else "done")

    def prepare(self, batch: Batch, check: bool) -> bool:
        """Choose how the next pass runs; returns whether it has to check the labels itself."""
        self._left -= 1
        if self._stage != "done":
            self._advance(batch)
        compiled = self._compiled is not None and self._shapes_of(batch) == self._shapes
        self._objective.compute = self._compiled if compiled and self._compiled else self._plain
        seen = self._objective.output_seen
        if compiled and check and seen is not None:
            like = torch.empty(batch.size, *seen.shape[1:], dtype=seen.dtype, device="meta")
            self._objective.task.check(like, batch.target)
        return check and not compiled

    def failed(self, error: Exception) -> bool:
        """Whether an error may come from compiling; then the passes go on uncompiled."""
        if self._objective.compute is self._plain:
            return False
        self._stop(f"{_UNCOMPILED}{_summary(error)}")
        return True

    def _advance(self, batch: Batch) -> None:
        if self._stage == "compile":
            # After a pass that has shown how many outputs there are, if labels are looked at.
            if self._passes > 0:
                self._compile(batch)
                self._stage = "done"
            self._passes += 1
            return
        if self._passes == _WARM_UP:
            self._since = self._now()
        elif self._passes == _WARM_UP + _TRIED:
            seconds = (self._now() - self._since) / _TRIED
            if self._before is None:
                self._begin_trial(batch, seconds)
            else:
                self._decide(self._before, seconds)
        self._passes += 1

    def _begin_trial(self, batch: Batch, seconds: float) -> None:
        if not from_main(seconds * self._left > _WORTH):
            self._stage = "done"
            return
        self._before, self._passes = seconds, 0
        self._compile(batch)

    def _decide(self, before: float, now: float) -> None:
        told = f"a step takes {1e3 * before:.2f} ms uncompiled and {1e3 * now:.2f} ms compiled"
        self._stage = "done"
        if from_main(before / now >= _GAIN):
            self.notes.append(f"the training step is compiled: {told}")
        else:
            self._stop(f"the training step stays uncompiled: {told}")

    def _compile(self, batch: Batch) -> None:
        if torch._C._len_torch_function_stack() > 0:
            # `onednn.py` changes calls on their way, which compiled code would not go by.
            self._stop("the network trains uncompiled on this CPU, whose oneDNN needs watching")
            return
        self._shapes = self._shapes_of(batch)
        try:
            own = types.MethodType(with_own_code(type(self._objective).computed), self._objective)
            self._compiled = torch.compile(own, backend=BACKEND)
        except Exception as error:  # there are as many reasons as there are backends
            self._stop(f"{_UNCOMPILED}{_summary(error)}")

    def _stop(self, note: str) -> None:
        self._stage, self._compiled = "done", None
        self._objective.compute = self._plain
        self.notes.append(note)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @staticmethod
    def _shapes_of(batch: Batch) -> list[torch.Size]:
        return [value.shape for value in batch.inputs]


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error), limit=120)}"
