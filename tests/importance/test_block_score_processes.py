"""Several processes score blocks as one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import processes
from shoal.distributed import rank, world
from shoal.importance import score
from shoal.models.small import CifarResNet
from shoal.network import capture

CRITERIA = (
    "cka", "kl", "lesion", "block_influence", "block_entropy", "taylor", "grasp", "l1", "random",
    "consensus",
)  # fmt: skip


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 12, 12, generator=generator).double(), torch.arange(6))
        for _ in range(count)
    ]


def scenarios() -> dict[str, dict[str, float]]:
    """Return what every process must find."""
    torch.manual_seed(0)
    model: nn.Module = CifarResNet(14, width=2).double().eval()
    network = capture(model, batches(1)[0][0])
    return {
        f"{name} of {count}": dict(score(network, batches(count), name))
        for name in CRITERIA
        for count in (5, 1)  # one batch: fewer than processes
    }


def write_down(folder: Path) -> None:
    torch.save({"found": scenarios(), "world": world()}, folder / f"{rank()}.pt")


@pytest.mark.long
def test_two_processes_score_blocks_as_one(tmp_path: Path) -> None:
    processes.grouped(2, tmp_path, write_down, tmp_path)
    expected = scenarios()
    for number in range(2):
        results = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert results["world"] == 2
        for key, scores in expected.items():
            assert results["found"][key] == pytest.approx(scores, rel=1e-9, abs=1e-12), key
