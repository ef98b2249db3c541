from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import fit_worker
import pytest
import torch

WORKER = Path(fit_worker.__file__)


def launched(command: list[str], folder: Path) -> dict[str, object]:
    """Run the worker in two processes and return what the main one wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [word.format(port=port) for word in command]
    done = subprocess.run(
        [sys.executable, "-m", *words, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "results.pt", weights_only=True)


TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}"]
# `--cpu` starts one process whatever `--num_processes` says; `--multi_gpu` starts them all, and
# without GPUs they use the CPU.
ACCELERATE = [
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "{port}",
]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(TORCHRUN, id="torchrun"),
        pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow),
    ],
)
def test_two_processes_end_like_one(command: list[str], tmp_path: Path) -> None:
    results = launched(command, tmp_path)
    assert results["world"] == 2
    assert results["alike"]
    assert results["norm alike"]
    assert results["own sampler"] == 2
    expected = fit_worker.scenarios(tmp_path)
    found = results["scenarios"]
    # Counts and sums of whole batches are put together without rounding.
    assert found["evaluate"] == expected["evaluate"]
    assert found["limit"] == expected["limit"]
    for name, values in expected.items():
        for part, value in values.items():
            other, own = torch.as_tensor(found[name][part]), torch.as_tensor(value)
            error = (other.double() - own.double()).abs().max().item()
            assert error < 1e-5, f"{name}: {part} differs by {error}"
