"""What a process has to know about the others, and the sums they form together.

Every function also works in a plain process (one of one). Under `accelerate launch` or `torchrun`
the process group is brought up, by accelerate, the first time it is asked for.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shoal.errors import ConfigError

T = TypeVar("T")

_alone = False  # see `alone`

_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def ensure_initialised(device: torch.device | None = None) -> None:
    """Bring up the process group if a launcher started several processes; else do nothing.

    "cpu" on a machine with GPUs makes the processes talk over gloo; None lets accelerate choose.
    """
    if not dist.is_available():
        return
    if not dist.is_initialized() and _launched():
        from accelerate import PartialState

        # torchrun says nothing about devices, and without a GPU accelerate forms a group only if
        # asked to use the CPU.
        cpu = _cpu_forced() or not torch.accelerator.is_available()
        PartialState(cpu=cpu or (device is not None and device.type == "cpu"))
        if not dist.is_initialized():  # the state existed before, made for one process
            dist.init_process_group("gloo" if cpu else None)
        atexit.register(_leave)
    if dist.is_initialized() and device is not None and device.type == "cpu" and _needs_gpu():
        raise ConfigError(
            "these processes were started for GPUs and cannot train on 'cpu': "
            "omit device, or set ACCELERATE_USE_CPU=true before the launcher"
        )


@contextmanager
def alone() -> Iterator[None]:
    """Let this process be one of one for a while: it works on what the others do not."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> int:
    """Return the number of processes that work together."""
    ensure_initialised()
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    ensure_initialised()
    return dist.get_rank() if _grouped() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        dist.barrier()


def sum_across(tensor: Tensor) -> Tensor:
    """Add up `tensor`, of one shape and type, over all processes, in place, and return it."""
    if world() == 1:
        return tensor
    if tensor.device.type == "cpu" and _needs_gpu():  # it goes by the GPU
        moved = tensor.to(torch.accelerator.current_accelerator())
        dist.all_reduce(moved)
        return tensor.copy_(moved)
    dist.all_reduce(tensor)
    return tensor


def from_main(value: T) -> T:
    """Return the main process's value, anything that can be pickled, in every process.

    What is measured differs from one process to the next.
    """
    if world() == 1:
        return value
    device = torch.accelerator.current_accelerator() if _needs_gpu() else None
    carried = [value]
    dist.broadcast_object_list(carried, src=0, device=device)
    return carried[0]


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Overwrite the buffers of `module` by the main process's: batch-norm statistics differ."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def default_device() -> torch.device:
    """Return the device accelerate gives this process: its GPU if there is one, else the CPU."""
    from accelerate import PartialState

    ensure_initialised()
    device: torch.device = PartialState(cpu=_cpu_forced()).device
    return device


def _leave() -> None:
    """End the process group before the interpreter ends.

    A thread of gloo that lets go of a tensor while the interpreter ends aborts the process, with
    all its work done (https://github.com/pytorch/pytorch/issues/190489). They end with the group,
    unless something in C++ still holds it, as after parallel training: so they get time before.
    NCCL has no such threads, and leaving it could wait for a process that failed.
    """
    if _grouped() and dist.get_backend() == "gloo":
        time.sleep(0.2)
        dist.destroy_process_group()


def _launched() -> bool:
    """Whether a launcher has set up this process as one of several."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return True
    # `mpirun accelerate launch --cpu` leaves the numbers to MPI. Without accelerate in between
    # MPI's variables may just as well belong to independent jobs.
    return _cpu_forced() and any(int(os.environ.get(name, "1")) > 1 for name in _MPI_SIZES)


def _grouped() -> bool:
    return not _alone and dist.is_available() and dist.is_initialized()


def _cpu_forced() -> bool:
    """Whether `accelerate launch --cpu` started this process."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in {"1", "true", "yes"}


def _needs_gpu() -> bool:
    """Whether the process group carries GPU tensors only."""
    return _grouped() and str(dist.get_backend()) in {"nccl", "xccl", "hccl", "cncl", "mccl"}
