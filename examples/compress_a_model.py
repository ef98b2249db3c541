"""Make a network of your own shallower and faster: `python examples/compress_a_model.py`."""

import torch
from torch import nn

import shoal


class Block(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(x + branch)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), *(Block(16) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    # Your own data do as well: any iterables of (inputs, labels) with a length.
    data = shoal.data.load_data("digits", batch_size=64)
    result = shoal.compress(
        model,
        data.train,
        data.val,
        test=data.test,  # reported, never used for a choice
        max_drop=2.0,  # points of accuracy that the result may lose
        dense_epochs=2,  # this model comes untrained; leave it out for a trained one
        epochs=1,
        remove=2,  # of the rectifiers; leave it out to go as far as max_drop allows
        tries=1,
        out="runs/mine",  # every step is kept; a run that was killed goes on from the last one
    )
    for step in result.steps:
        print(f"{step.operation:>20}: {step.metrics.top1_val:.2f} %, depth {step.metrics.depth}")
    print(result)


if __name__ == "__main__":
    main()
