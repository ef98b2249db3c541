"""Weights that stand in a file once for several names, or under few of its names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from shoal.errors import CheckpointError
from shoal.models import load_checkpoint


class Tied(nn.Module):
    """Reads and writes with one table."""

    def __init__(self, seed: int, tie: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(5, 3)
        self.inner = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        if tie:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("prefix", ["", "model."])
def test_tied_weights_that_the_file_has_once_are_loaded_and_stay_tied(
    prefix: str, tmp_path: Path
) -> None:
    source, net = Tied(1), Tied(2)
    if prefix:
        state = source.state_dict()
        del state["embed.weight"]
        save_file(
            {prefix + name: value for name, value in state.items()}, tmp_path / "a.safetensors"
        )
    else:
        save_model(source, str(tmp_path / "a.safetensors"))
    report = load_checkpoint(net, tmp_path / "a.safetensors")
    assert report.missing == ()
    assert report.prefix == prefix
    assert net.head.weight is net.embed.weight
    for name, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[name])


def test_a_weight_that_the_model_does_not_tie_is_missing(tmp_path: Path) -> None:
    save_model(Tied(1), str(tmp_path / "a.safetensors"))
    with pytest.raises(CheckpointError, match="1 of 4 tensors missing"):
        load_checkpoint(Tied(2, tie=False), tmp_path / "a.safetensors")


def test_a_prefix_of_few_names_is_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(1)
    student, net = nn.Linear(4, 3), nn.Linear(4, 3)
    teacher = nn.Sequential(*(nn.Linear(4, 4) for _ in range(8)))
    content = {f"student.{name}": value for name, value in student.state_dict().items()}
    content |= {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    torch.save({"state_dict": content}, tmp_path / "a.pt")
    before = net.weight.clone()
    with pytest.raises(CheckpointError, match="does not fit the model"):  # nobody asked for it
        load_checkpoint(net, tmp_path / "a.pt")
    assert torch.equal(net.weight, before)
    report = load_checkpoint(net, tmp_path / "a.pt", prefix="student.")
    assert report.place == "state_dict.student."
    assert torch.equal(net.weight, student.weight)
    assert torch.equal(net.bias, student.bias)
    with pytest.raises(CheckpointError, match=r"prefix 'pupil\.'"):
        load_checkpoint(net, tmp_path / "a.pt", prefix="pupil.")
