"""Three residual blocks with batch norms on digits, for the tests of what removes either."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from shoal.network import Network, capture
from shoal.training import fit
from small_runs import digits


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Chain(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.one, self.two, self.three = (Block(width) for _ in range(3))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.three(self.two(self.one(self.act(self.norm(self.stem(x))))))
        return self.fc(x.mean((2, 3)))


@functools.cache
def chain() -> Network:
    """Return the capture of a trained chain; a search copies it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Chain()
    fit(model, digits().train, epochs=10, recipe={"lr": 0.1, "precision": "fp32"})
    return capture(model.eval(), digits().example_inputs(4)).copy()
