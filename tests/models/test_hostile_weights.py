"""Files of weights whose other contents are forged: nothing of NumPy is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from shoal.models import load_checkpoint
from shoal.models.weights_file import read_weights


def test_values_of_numpy_beside_the_weights_are_not_made(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    beside = {
        "best": np.float64(0.5), "curve": np.arange(3), "kind": np.dtype("V8"),
        "names": np.array(["a", "b"]), "when": np.datetime64("2026-01-01"),
    }  # fmt: skip
    torch.save({**beside, "state_dict": layer.state_dict()}, tmp_path / "w.pt")
    held = read_weights(tmp_path / "w.pt")
    made = {name: type(held[name]).__module__.partition(".")[0] for name in beside}
    assert "numpy" not in made.values()
    other = torch.nn.Linear(2, 2)
    assert load_checkpoint(other, tmp_path / "w.pt").loaded == 2
    assert torch.equal(other.weight, layer.weight)
