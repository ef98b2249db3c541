"""Scores and lines are alike in one process and in several."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import processes
from shoal.distributed import rank, world
from shoal.errors import DataError, TrainingError
from shoal.importance import score
from shoal.importance.entropy import Entropy
from shoal.network import Network, capture
from shoal.passes.batches import observe
from shoal.surgery import LineMoments, linearize_


@cache
def captured() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.GELU(), nn.Flatten(), nn.Linear(20, 4)
    )
    return capture(model, torch.randn(2, 3, 6, 6))


def network() -> Network:
    return captured().copy()


def batches(count: int, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 6, 6, generator=generator) for _ in range(count)]


def scenarios() -> dict[str, Any]:
    """Return everything that every process must find."""
    found: dict[str, Any] = {}
    for count in (7, 1):  # one batch: fewer than processes
        net = network()
        entropy, moments = Entropy(), LineMoments()
        found[f"{count} seen"] = observe(net, batches(count), [entropy, moments])
        found[f"{count} scores"] = entropy.scores().to_dict()
        for name, line in moments.lines().items():
            found[f"{count} line {name}"] = torch.stack([line.slope, line.intercept])
            found[f"{count} residual {name}"] = torch.tensor(line.residual)
        for options in ({"pooling": "batch"}, {"zeros": "on"}, {"samples": 20}):
            key = f"{count} {options}"
            found[key] = score(net, batches(count), **options).to_dict()  # type: ignore[arg-type]
        linearize_(net, ["1"], loader=batches(count))
        found[f"{count} after"] = score(net, batches(count)).to_dict()
    return found


def errors() -> list[str]:
    """Return the names of errors that every process must raise."""
    raised = []
    nan = batches(3)
    nan[2][0, 0, 0, 0] = float("nan")
    for data in ([], nan):
        try:
            score(network(), data)
        except (DataError, TrainingError) as error:
            raised.append(type(error).__name__)
    return raised


def write_down(folder: Path) -> None:
    results = {"found": scenarios(), "errors": errors(), "world": world()}
    torch.save(results, folder / f"{rank()}.pt")


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    processes.grouped(2, tmp_path, write_down, tmp_path)
    expected, raised = scenarios(), errors()
    assert raised == ["DataError", "TrainingError"]
    for number in range(2):
        results = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert results["world"] == 2
        assert results["errors"] == raised
        assert results["found"].keys() == expected.keys()
        for key, value in expected.items():
            found = results["found"][key]
            if isinstance(value, Tensor):
                assert (found - value).abs().max() < 1e-12, key
            else:
                assert found == value, key
