"""Several processes score blocks as one does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import block_score_worker
import pytest
import torch


def test_two_processes_score_blocks_as_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(Path(block_score_worker.__file__)), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    expected = block_score_worker.scenarios()
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert results["world"] == 2
        for key, scores in expected.items():
            assert results["found"][key] == pytest.approx(scores, rel=1e-9, abs=1e-12), key
