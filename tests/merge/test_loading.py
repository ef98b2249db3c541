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
from captures import resnet20
from changed import changed
from resealed import write_resealed
from shoal import files as atomic
from shoal.errors import CheckpointError, FileError, PlanError
from shoal.merge.loading import load
from shoal.modes import is_channels_last, make_channels_last
from shoal.network import Network, capture
from shoal.network.saving import save, state_hash
from small_runs import captured, digits, same_weights


@pytest.fixture
def lined() -> Network:
    """A network with two fitted lines and one identity."""
    net = captured().copy()
    shoal.linearize_(net, ["relu", "last"], loader=digits().train)
    return changed(shoal.linearize_, net, ["act"], how="identity")


@pytest.fixture
def saved(lined: Network, tmp_path: Path) -> Path:
    return save(lined, tmp_path / "saved")


def outputs(net: nn.Module) -> Tensor:
    x = digits().example_inputs(6)
    with torch.no_grad():
        return net.eval()(x.to(next(net.parameters()).dtype))


# ---------------------------------------------------------------------- there and back


def test_a_network_comes_back_bit_for_bit(lined: Network, saved: Path) -> None:
    back = load(saved)
    assert same_weights(back, lined)
    assert torch.equal(outputs(back), outputs(lined))
    assert back.plan.to_dict() == lined.plan.to_dict()
    assert [site.linearized for site in back.sites] == [site.linearized for site in lined.sites]
    assert not back.training
    assert sorted(path.name for path in saved.iterdir()) == ["model.safetensors", "network.json"]


@pytest.mark.long
def test_the_memory_format_of_images_comes_back_and_merging_keeps_it(tmp_path: Path) -> None:
    """A trained network runs channels_last, which is much faster on many CPUs."""
    x = torch.randn(2, 3, 16, 16)
    for last in (False, True):
        net = resnet20()
        if last:
            make_channels_last(net)
        shoal.merge_(net, policy="always")
        assert is_channels_last(net) is last
        back = load(save(net, tmp_path / str(last)))
        assert is_channels_last(back) is last
        assert torch.equal(back(x), net(x))


def test_a_network_goes_on_after_it_was_loaded(lined: Network, saved: Path, tmp_path: Path) -> None:
    back = load(saved)
    shoal.linearize_(back, "relu_1", loader=digits().train)
    again = load(save(back, tmp_path / "again"))
    assert torch.equal(outputs(again), outputs(back))
    assert len(again.plan) == 3


def test_half_precision_comes_back_as_it_was(lined: Network, tmp_path: Path) -> None:
    half = lined.to(torch.bfloat16)
    back = load(save(half, tmp_path / "half"))
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
    back = load(tmp_path / "tied")
    assert same_weights(back, net)
    assert back.get_parameter("two.weight") is back.get_parameter("one.weight")
    assert size < 4 * (36 + 6 + 6) + 600  # the header takes a few hundred bytes


# ---------------------------------------------------------------------- replacing


def test_a_new_save_takes_the_place_of_the_old_one(lined: Network, saved: Path) -> None:
    shoal.linearize_(lined, "relu_1", loader=digits().train)
    save(lined, saved)
    assert len(load(saved).plan) == 3
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
        found = state_hash(load(copy))  # holds the weights against the checksum
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
    with pytest.raises(FileError, match="cannot write"):
        save(lined, tmp_path / "photo.jpg" / "sub")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


# ---------------------------------------------------------------------- damage


def test_damaged_weights_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is damaged or was changed: its checksum"):
        load(saved)
    path.write_bytes(bytes(data[: len(data) // 2]))
    with pytest.raises(CheckpointError, match="is damaged"):
        load(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match="is missing: copy the whole folder"):
        load(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[: len(text) // 2], "is damaged and cannot be read"),
        (lambda text: "[]", "holds no record"),
        (lambda text: "{}", "is not a network"),
        (lambda text: text.replace('"format": 2', '"format": 99'), "update shoal"),
        (lambda text: text.replace('"type": "Conv2d"', '"type": "Konv2d"', 1), "not registered"),
        (lambda text: text.replace("aten.add.Tensor", "aten.add.Tenor", 1), "not registered"),
        (lambda text: text.replace('"operations"', '"operation"'), "is damaged"),
        (lambda text: text.replace('"leaves"', '"leave"'), "is damaged"),
        (lambda text: text.replace('"nodes"', '"knots"', 1), "is damaged"),
        (lambda text: text.replace('"in_channels": 8', '"in_channels": -8', 1), "is damaged"),
        (lambda text: text.replace('"num_features"', '"features"', 1), "takes no"),
    ],
)
def test_a_damaged_description_is_refused(saved: Path, change: Any, words: str) -> None:
    path = saved / "network.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    write_resealed(path, changed)
    with pytest.raises(PlanError, match=words) as caught:
        load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('"out_channels": 8', '"out_channels": 9', 1), "in its layer"),
        (lambda text: text.replace('"bias": {}', '"bias": null', 1), "is missing"),
        (lambda text: text.replace('"running_mean": {}, ', "", 1), "is missing"),
        (lambda text: text.replace('"weight": {}', '"wait": {}', 1), "is missing"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved: Path, change: Any, words: str) -> None:
    path = saved / "network.json"
    changed = change(path.read_text())
    assert changed != path.read_text()
    write_resealed(path, changed)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("aten.add.Tensor", "aten.from_file.default"),
        ("aten.add.Tensor", "os.system"),
        ("aten.add.Tensor", "builtins.eval"),
        ("aten.add.Tensor", "operator.attrgetter"),
        ("aten.add.Tensor", "getattr"),
        ('"target": "conv1"', '"target": "x\\"), print(\\"here"'),
        ('"op": "placeholder", "target": "x"', '"op": "placeholder", "target": "x=print(1)"'),
        ('"op": "call_module", "target": "conv1"', '"op": "call_method", "target": "conv1"'),
        ('"type": "Conv2d"', '"type": "os.system"'),
        ('"type": "Conv2d"', '"type": "Sequential"'),
    ],
)
def test_nothing_that_a_file_names_is_called(
    saved: Path, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved / "network.json"
    text = path.read_text()
    assert old in text
    write_resealed(path, text.replace(old, new, 1))
    with pytest.raises(PlanError) as caught:
        load(saved)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_no_saved_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="there is no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(PlanError, match=r"has no network\.json"):
        load(tmp_path)


def test_the_file_tells_what_it_holds(saved: Path, lined: Network) -> None:
    lined.meta["classes"] = ["cat", "dog"]
    held = json.loads((save(lined, saved) / "network.json").read_text())
    assert held["format"] == 2
    assert [op["names"] for op in held["plan"]["operations"]] == [["relu", "last"], ["act"]]
    assert held["plan"]["fingerprint"] == lined.plan.fingerprint
    assert held["inputs"]["leaves"] == [{"shape": [4, 1, 8, 8], "dtype": "float32"}]
    assert [node["name"] for node in held["nodes"]] == [node.name for node in lined.graph.nodes]
    assert held["modules"]["fc"]["type"] == "Linear"
    assert load(saved).meta == {"classes": ["cat", "dog"]}


def test_the_same_network_gives_the_same_bytes(lined: Network, saved: Path, tmp_path: Path) -> None:
    names = ("network.json", "model.safetensors")
    first = [(saved / name).read_bytes() for name in names]
    for network in (lined, load(saved)):
        again = save(network, tmp_path / "again")
        assert [(again / name).read_bytes() for name in names] == first


# ---------------------------------------------------------------------- runs


def test_parts_of_a_run(lined: Network, tmp_path: Path) -> None:
    for part, names in (("best", ["relu"]), ("merged", ["relu", "last"]), ("steps/000", [])):
        net = captured().copy()
        if names:
            shoal.linearize_(net, names, how="identity")
        save(net, tmp_path / part)
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(PlanError, match="has no result yet"):
        load(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert load(tmp_path).sites_left == 2
    assert load(tmp_path, "best").sites_left == 3
    assert load(tmp_path, "steps/000").sites_left == 4
    with pytest.raises(PlanError, match="there is no folder"):
        load(tmp_path, "steps/007")
