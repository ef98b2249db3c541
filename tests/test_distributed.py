from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from shoal import distributed


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_plain_process_is_one_of_one_and_the_main_one() -> None:
    assert (distributed.world(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    distributed.barrier()
    distributed.broadcast_buffers(nn.BatchNorm1d(2))
    assert isinstance(distributed.default_device(), torch.device)


def test_a_sum_over_one_process_is_the_tensor_itself() -> None:
    tensor = torch.arange(3)
    assert distributed.sum_across(tensor) is tensor


_LEAVES = """
import atexit, torch.distributed as dist
atexit.register(lambda: print(f"left {not dist.is_initialized()}", flush=True))  # called last
from shoal.distributed import world
print(f"world {world()}", flush=True)
"""


@pytest.mark.long
def test_a_process_leaves_its_group_before_the_interpreter_ends(tmp_path: Path) -> None:
    # else a thread of gloo, still at work, aborts it now and then
    script = tmp_path / "leaves.py"
    script.write_text(_LEAVES)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("world 2") == done.stdout.count("left True") == 2
