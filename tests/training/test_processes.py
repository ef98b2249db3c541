from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fit_worker
import pytest
import torch

import processes

WORKER = Path(fit_worker.__file__)


TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}"]
# `--cpu` starts one process whatever `--num_processes` says; `--multi_gpu` starts them all, and
# without GPUs they use the CPU.
ACCELERATE = [
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "{port}",
]  # fmt: skip


def launch(command: list[str], folder: Path) -> None:
    """Run the worker in two processes that a launcher starts."""
    words = [word.format(port=processes.free_port()) for word in command]
    done = subprocess.run(
        [sys.executable, "-m", *words, str(WORKER), str(folder)],
        env={**os.environ, **processes.ALONE},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([], id="forked"),
        pytest.param(TORCHRUN, id="torchrun", marks=pytest.mark.slow),
        pytest.param(ACCELERATE, id="accelerate", marks=pytest.mark.slow),
    ],
)
def test_two_processes_end_like_one(command: list[str], tmp_path: Path) -> None:
    if command:
        launch(command, tmp_path)
    else:
        processes.grouped(2, tmp_path, fit_worker.main, tmp_path)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    assert results["world"] == 2
    assert results["alike"]
    assert results["norm alike"]
    assert results["own sampler"] == 2
    assert results["own loss"]
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
