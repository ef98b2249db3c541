"""Several processes find exactly what one finds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import score_worker
import torch
from torch import Tensor


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(Path(score_worker.__file__)), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    expected, errors = score_worker.scenarios(), score_worker.errors()
    assert errors == ["DataError", "TrainingError"]
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert results["world"] == 2
        assert results["errors"] == errors
        assert results["found"].keys() == expected.keys()
        for key, value in expected.items():
            found = results["found"][key]
            if isinstance(value, Tensor):
                assert (found - value).abs().max() < 1e-12, key
            else:
                assert found == value, key
