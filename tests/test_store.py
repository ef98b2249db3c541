from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
import small_runs
from shoal import files as atomic
from shoal.errors import CheckpointError, PlanError, RunError
from shoal.modes import is_channels_last, make_channels_last
from shoal.network import Network, capture
from shoal.store import load, load_weights_, save, state_hash
from small_runs import captured, digits, same_weights


@pytest.fixture
def lined() -> Network:
    """A network with two fitted lines and one identity."""
    net = captured().copy()
    shoal.linearize_(net, ["relu", "last"], loader=digits().train)
    return shoal.linearize_(net, ["act"], how="identity")


@pytest.fixture
def saved(lined: Network, tmp_path: Path) -> Path:
    return save(lined, tmp_path / "saved")


def outputs(net: nn.Module) -> Tensor:
    x = digits().example_inputs(6)
    with torch.no_grad():
        return net.eval()(x.to(next(net.parameters()).dtype))


# ---------------------------------------------------------------------- there and back


def test_a_network_comes_back_bit_for_bit(lined: Network, saved: Path) -> None:
    back = load(saved, small_runs.build(seed=5))
    assert same_weights(back, lined)
    assert torch.equal(outputs(back), outputs(lined))
    assert back.plan.to_dict() == lined.plan.to_dict()
    assert [site.linearized for site in back.sites] == [site.linearized for site in lined.sites]
    assert not back.training
    assert sorted(path.name for path in saved.iterdir()) == ["model.safetensors", "plan.json"]


def test_the_memory_format_of_images_comes_back_and_merging_keeps_it(tmp_path: Path) -> None:
    """A trained network runs channels_last, which is much faster on many CPUs."""
    torch.manual_seed(0)
    model = shoal.models.cifar_resnet20(width=4).eval()
    x = torch.randn(2, 3, 16, 16)
    for last in (False, True):
        net = capture(model, x).copy()
        if last:
            make_channels_last(net)
        shoal.merge_(net, policy="always")
        assert is_channels_last(net) is last
        back = load(save(net, tmp_path / str(last)), model)
        assert is_channels_last(back) is last
        assert torch.equal(back(x), net(x))
    assert not is_channels_last(model)


def test_the_users_model_keeps_its_weights(saved: Path) -> None:
    model = small_runs.build(seed=5).train()
    before = state_hash(model)
    load(saved, model)
    assert state_hash(model) == before
    assert model.training


def test_a_named_model_is_built_again(lined: Network, tmp_path: Path) -> None:
    lined.plan.base = f"{small_runs.__file__}:build?num_classes=10"
    save(lined, tmp_path / "named")
    assert torch.equal(outputs(load(tmp_path / "named")), outputs(lined))


def test_a_network_goes_on_after_it_was_loaded(lined: Network, saved: Path, tmp_path: Path) -> None:
    back = load(saved, small_runs.build())
    shoal.linearize_(back, "relu_1", loader=digits().train)
    again = load(save(back, tmp_path / "again"), small_runs.build())
    assert torch.equal(outputs(again), outputs(back))
    assert len(again.plan) == 3


def test_half_precision_comes_back_as_it_was(lined: Network, tmp_path: Path) -> None:
    half = lined.to(torch.bfloat16)
    back = load(save(half, tmp_path / "half"), small_runs.build())
    assert same_weights(back, half)
    assert next(back.parameters()).dtype == torch.bfloat16
    assert torch.equal(outputs(back), outputs(half))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    net = capture(Tied(), torch.randn(3, 6)).copy()
    size = (save(net, tmp_path / "tied") / "model.safetensors").stat().st_size
    back = load(tmp_path / "tied", Tied())
    assert same_weights(back, net)
    assert back.get_parameter("two.weight") is back.get_parameter("one.weight")
    assert size < 4 * (36 + 6 + 6) + 600  # the header takes a few hundred bytes


# ---------------------------------------------------------------------- replacing


def test_a_new_save_takes_the_place_of_the_old_one(lined: Network, saved: Path) -> None:
    shoal.linearize_(lined, "relu_1", loader=digits().train)
    save(lined, saved)
    assert len(load(saved, small_runs.build()).plan) == 3
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize("call", ["fsync", "rename", "exchange"])
def test_a_save_that_ends_half_way_leaves_the_old_or_the_new(
    lined: Network, saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Ends it at every single system call that makes something last, in turn."""
    old = state_hash(lined)
    with torch.no_grad():
        lined.get_parameter("fc.bias").add_(1.0)
    new = state_hash(lined)
    for at in range(1, 12):
        copy = Path(shutil.copytree(saved, saved.parent / f"copy{at}"))
        with monkeypatch.context() as patch:
            finished = _saved_until(patch, call, at, lined, copy)
        back = lined.copy()
        load_weights_(back, copy)  # holds the weights against the plan's checksum
        found = state_hash(back)
        assert found == new if finished else found in (old, new)
        if finished:
            return
    pytest.fail("the save never came to its end")


def _saved_until(patch: pytest.MonkeyPatch, call: str, at: int, net: Network, folder: Path) -> bool:
    """Save, but stop everything at the `at`-th call; return whether it came to its end."""
    left = at

    def ending(original: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return act

    if call == "fsync":
        patch.setattr(os, "fsync", ending(os.fsync))
    elif call == "rename":
        patch.setattr(atomic, "_exchange", lambda one, other: False)
        patch.setattr(Path, "replace", ending(Path.replace))
    else:
        patch.setattr(atomic, "_exchange", ending(atomic._exchange))
    try:
        save(net, folder)
    except KeyboardInterrupt:
        return False
    return True


def test_a_folder_with_other_files_is_left_alone(lined: Network, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(PlanError, match="holds other files"):
        save(lined, tmp_path)
    with pytest.raises(PlanError, match="is a file"):
        save(lined, tmp_path / "photo.jpg")
    with pytest.raises(RunError, match="cannot write"):
        save(lined, tmp_path / "photo.jpg" / "sub")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


# ---------------------------------------------------------------------- damage


def test_damaged_weights_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is damaged or was changed: its checksum"):
        load(saved, small_runs.build())
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(CheckpointError, match="is damaged"):
        load(saved, small_runs.build())
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing: copy the whole folder"):
        load(saved, small_runs.build())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "is damaged and cannot be read"),
        (lambda text: "[]", "is not a plan"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "update shoal"),
        (lambda text: text.replace('"linearize"', '"vaporize"', 1), "does not know: update shoal"),
        (lambda text: text.replace('"last"', '"lost"', 1), "does not fit this model"),
        (lambda text: text.replace('"operations"', '"operation"'), "no list of operations"),
        (lambda text: text.replace('"leaves"', '"leave"'), "does not describe the inputs"),
    ],
)
def test_a_damaged_plan_is_refused(saved: Path, change: Any, words: str) -> None:
    path = saved / "plan.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(PlanError, match=words) as caught:
        load(saved, small_runs.build())
    assert "\n" not in str(caught.value)


class Wider(small_runs.Small):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(8 * 16, 25), nn.Linear(25, 10)


def test_a_plan_of_another_model_is_refused(saved: Path) -> None:
    with pytest.raises(PlanError, match="was made from another model"):
        load(saved, Wider())
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU())
    with pytest.raises(PlanError, match="was made from another model"):
        load(saved, other)


def test_a_model_that_nobody_named_has_to_be_given(saved: Path) -> None:
    with pytest.raises(PlanError, match="give it as model="):
        load(saved)


def test_a_folder_that_is_no_saved_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(PlanError, match=r"has no plan\.json"):
        load(tmp_path)


def test_the_file_tells_what_it_holds(saved: Path, lined: Network) -> None:
    plan = json.loads((saved / "plan.json").read_text())
    assert plan["format"] == 1
    assert [op["names"] for op in plan["operations"]] == [["relu", "last"], ["act"]]
    assert plan["fingerprint"] == lined.plan.fingerprint
    assert plan["inputs"]["leaves"] == [{"shape": [4, 1, 8, 8], "dtype": "float32"}]
