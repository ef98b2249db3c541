"""Scores of blocks that must be alike in one process and in several; run by a launcher."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.distributed import rank, world
from shoal.importance import score
from shoal.models import cifar_resnet20
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
    model: nn.Module = cifar_resnet20(width=4).double().eval()
    network = capture(model, batches(1)[0][0])
    return {
        f"{name} of {count}": dict(score(network, batches(count), name))
        for name in CRITERIA
        for count in (5, 1)  # one batch: fewer than processes
    }


def main(folder: Path) -> None:
    torch.save({"found": scenarios(), "world": world()}, folder / f"{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
