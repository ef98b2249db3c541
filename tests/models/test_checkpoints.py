from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from shoal.errors import CheckpointError
from shoal.models import check_finite, load_checkpoint


class Net(nn.Module):
    """A convolution, a batch norm and a head, under names as they occur in practice."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.fc = nn.Linear(4, classes)


@pytest.fixture
def source() -> Net:
    torch.manual_seed(1)
    net = Net()
    nn.init.normal_(net.bn1.running_mean)
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return all(torch.equal(left[name], right[name]) for name in left)


def renamed(net: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in net.state_dict().items()}


def error_of(path: Path, model: nn.Module | None = None) -> str:
    model = Net() if model is None else model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, path)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the model changed"
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module.", "net.backbone."],
)
@pytest.mark.parametrize("nest", [(), ("state_dict",), ("model",), ("ckpt", "model")])
def test_weights_are_found_under_any_nest_and_prefix(
    prefix: str, nest: tuple[str, ...], source: Net, tmp_path: Path
):
    content: dict[str, Any] = renamed(source, prefix)
    for key in nest:
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "a.pt")
    net = Net()
    report = load_checkpoint(net, tmp_path / "a.pt")
    assert same(net, source)
    assert report.loaded == len(source.state_dict())
    assert report.prefix in (prefix, prefix.replace("module.", "").replace("_orig_mod.", ""))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt", ".pth.tar"])
def test_every_suffix_of_torch_files_is_read(suffix: str, source: Net, tmp_path: Path):
    torch.save(source.state_dict(), tmp_path / f"a{suffix}")
    net = Net()
    load_checkpoint(net, tmp_path / f"a{suffix}")
    assert same(net, source)


def test_safetensors_and_the_old_torch_format(source: Net, tmp_path: Path):
    save_file(renamed(source, "module."), tmp_path / "a.safetensors")
    torch.save(source.state_dict(), tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    for file in ("a.safetensors", "b.pth"):
        net = Net()
        load_checkpoint(net, str(tmp_path / file))
        assert same(net, source)


def test_the_optimizer_is_not_taken_for_weights(source: Net, tmp_path: Path):
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    sum(p.sum() for p in source.parameters()).backward()
    optimizer.step()
    torch.save(
        {"optimizer": optimizer.state_dict(), "model": source.state_dict()}, tmp_path / "a.pt"
    )
    net = Net()
    load_checkpoint(net, tmp_path / "a.pt")
    assert same(net, source)


def test_plain_weights_are_preferred_to_averaged_ones(source: Net, tmp_path: Path):
    torch.manual_seed(2)
    averaged = Net()
    content = {"state_dict_ema": averaged.state_dict(), "state_dict": source.state_dict()}
    torch.save(content, tmp_path / "both.pt")
    averaging = torch.optim.swa_utils.AveragedModel(averaged)
    torch.save(averaging.state_dict(), tmp_path / "swa.pt")
    net = Net()
    load_checkpoint(net, tmp_path / "both.pt")
    assert same(net, source)
    load_checkpoint(net, tmp_path / "swa.pt")
    assert same(net, averaged)


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [
        ("model.", "ema_model.module."),
        ("student.", "teacher."),
        ("", "model_ema.module."),
        ("online_model.", "ema_model."),
        ("module.encoder_q.", "module.encoder_k."),
        ("net.", "net_ema."),
    ],
)
@pytest.mark.parametrize("averaged_first", [False, True])
def test_plain_weights_are_taken_in_any_order_and_others_are_named(
    plain: str, averaged: str, averaged_first: bool, source: Net, tmp_path: Path
):
    torch.manual_seed(2)
    other = Net()
    parts = [renamed(source, plain), renamed(other, averaged)]
    first, second = reversed(parts) if averaged_first else parts
    torch.save({"state_dict": {**first, **second}, "epoch": 1}, tmp_path / "two.ckpt")
    net = Net()
    report = load_checkpoint(net, tmp_path / "two.ckpt")
    assert same(net, source)
    assert report.place == f"state_dict.{plain}"
    (note,) = report.notes
    assert averaged in note
    assert note.count("', '") == 0  # no place is named twice
    assert plain in note
    report = load_checkpoint(net, tmp_path / "two.ckpt", prefix=averaged)
    assert same(net, other)
    assert report.place == f"state_dict.{averaged}"
    with pytest.raises(CheckpointError, match=r"no weights that fit under prefix 'other\.'"):
        load_checkpoint(net, tmp_path / "two.ckpt", prefix="other.")


def test_which_of_two_equal_places_is_asked_for(source: Net, tmp_path: Path):
    torch.manual_seed(2)
    torch.save({**renamed(source, "net_a."), **renamed(Net(), "net_b.")}, tmp_path / "two.pt")
    message = error_of(tmp_path / "two.pt")
    assert "several weights that fit the model, under 'net_a.' and 'net_b.'" in message
    assert "prefix=" in message
    net = Net()
    load_checkpoint(net, tmp_path / "two.pt", prefix="net_a.")
    assert same(net, source)
    torch.save({**renamed(source, "net_a."), **renamed(source, "net_b.")}, tmp_path / "same.pt")
    assert load_checkpoint(net, tmp_path / "same.pt").notes == ()


def test_counters_and_copies_beside_the_weights_are_ignored(source: Net, tmp_path: Path):
    counters = {
        "total_ops": torch.ones(1),
        "conv1.total_params": torch.ones(1, dtype=torch.float64),
        "n_averaged": torch.tensor(3),
    }
    torch.save({**source.state_dict(), **counters}, tmp_path / "a.pt")
    net = Net()
    report = load_checkpoint(net, tmp_path / "a.pt")
    assert same(net, source)
    assert set(report.ignored) == set(counters)
    assert report.notes == ()
    copies = {f"ema_{name.replace('.', '_')}": t + 1 for name, t in source.state_dict().items()}
    torch.save({**source.state_dict(), **copies}, tmp_path / "b.pt")
    net = Net()
    report = load_checkpoint(net, tmp_path / "b.pt")
    assert same(net, source)
    assert "first 'ema_conv1_weight'" in report.notes[0]
    squashed = {f"model_ema.{n.replace('.', '')}": t + 1 for n, t in source.state_dict().items()}
    torch.save({**renamed(source, "model."), **squashed}, tmp_path / "c.pt")
    net = Net()
    assert "model_ema." in load_checkpoint(net, tmp_path / "c.pt").notes[0]
    assert same(net, source)


def test_a_weight_that_only_sounds_like_a_copy_is_unexpected(source: Net, tmp_path: Path):
    torch.save({**source.state_dict(), "ema.gain": torch.ones(4)}, tmp_path / "a.pt")
    assert "1 unexpected (first 'ema.gain')" in error_of(tmp_path / "a.pt")


def test_buffers_that_the_model_makes_itself_may_be_in_the_file(source: Net, tmp_path: Path):
    net = Net()
    net.register_buffer("grid", torch.arange(4), persistent=False)
    torch.save({**source.state_dict(), "grid": torch.arange(4)}, tmp_path / "a.pt")
    load_checkpoint(net, tmp_path / "a.pt")
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    torch.save({**source.state_dict(), "grid": torch.arange(4) + 1}, tmp_path / "b.pt")
    assert "1 unexpected (first 'grid')" in error_of(tmp_path / "b.pt", net)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_masks_of_pruning_are_applied(prefix: str, source: Net, tmp_path: Path):
    pruned = copy.deepcopy(source)
    prune.l1_unstructured(pruned.conv1, "weight", amount=0.5)
    prune.random_unstructured(pruned.layer1[0], "bias", amount=2)
    torch.save(renamed(pruned, prefix), tmp_path / "a.pt")
    net = Net()
    load_checkpoint(net, tmp_path / "a.pt")
    assert torch.equal(net.conv1.weight, pruned.conv1.weight)
    assert torch.equal(net.layer1[0].bias, pruned.layer1[0].bias)
    assert int((net.conv1.weight == 0).sum()) == net.conv1.weight.numel() // 2
    again = Net()
    prune.identity(again.conv1, "weight")
    prune.identity(again.layer1[0], "bias")
    load_checkpoint(again, tmp_path / "a.pt")  # a model that is pruned itself
    assert same(again, pruned)


def test_a_mask_that_was_applied_goes_and_another_is_refused(source: Net, tmp_path: Path):
    mask = (torch.arange(source.fc.weight.numel()) % 2).view_as(source.fc.weight).float()
    content = {**source.state_dict(), "fc.weight_mask": mask}
    torch.save(content, tmp_path / "a.pt")
    assert "pruned: call torch.nn.utils.prune.remove" in error_of(tmp_path / "a.pt")
    torch.save({**content, "fc.weight": source.fc.weight.data * mask}, tmp_path / "b.pt")
    net = Net()
    load_checkpoint(net, tmp_path / "b.pt")
    assert torch.equal(net.fc.weight, source.fc.weight * mask)


def test_parametrised_weights_get_the_way_out(source: Net, tmp_path: Path):
    torch.nn.utils.parametrizations.weight_norm(source.fc)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    assert "parametrize.remove_parametrizations" in error_of(tmp_path / "a.pt")


def test_wrappers_inside_names_are_removed(source: Net, tmp_path: Path):
    content = {
        name.replace("layer1.", "layer1.module."): tensor
        for name, tensor in source.state_dict().items()
    }
    torch.save(content, tmp_path / "a.pt")
    net = Net()
    load_checkpoint(net, tmp_path / "a.pt")
    assert same(net, source)


def test_a_part_of_another_network_does_not_pass_for_the_model(source: Net, tmp_path: Path):
    torch.save(source.state_dict(), tmp_path / "a.pt")
    assert "does not fit the model" in error_of(tmp_path / "a.pt", nn.Linear(4, 10))


def test_precision_is_converted(source: Net, tmp_path: Path):
    torch.save(source.half().state_dict(), tmp_path / "half.pt")
    net = Net()
    load_checkpoint(net, tmp_path / "half.pt")
    assert net.conv1.weight.dtype == torch.float32
    assert torch.equal(net.conv1.weight, source.conv1.weight.float())
    wide = Net().double()
    wide.fc.weight.data.fill_(1e300)
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    assert "holds Inf (40 of 40 values are not finite) in 'fc.weight'" in error_of(
        tmp_path / "wide.pt"
    )


def test_quantised_weights_are_refused(source: Net, tmp_path: Path):
    content = source.state_dict()
    content["fc.weight"] = torch.ones(10, 4, dtype=torch.int8)
    torch.save(content, tmp_path / "a.pt")
    assert "'fc.weight' is float32 here, int8 in" in error_of(tmp_path / "a.pt")


def test_files_without_the_batch_counter_load(source: Net, tmp_path: Path):
    content = source.state_dict()
    del content["bn1.num_batches_tracked"]
    torch.save(content, tmp_path / "a.pt")
    net = Net()
    load_checkpoint(net, tmp_path / "a.pt")
    assert same(net, source)


def test_missing_file_folder_empty_and_unknown_type(source: Net, tmp_path: Path):
    torch.save(source.state_dict(), tmp_path / "resnet20.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "did you mean 'resnet20.pt'" in error_of(tmp_path / "resnet_20.pt")
    assert "there is no folder" in error_of(tmp_path / "nowhere" / "a.pt")
    assert "is a folder" in error_of(tmp_path)
    assert "is empty" in error_of(tmp_path / "empty.pt")
    assert "ends in .safetensors, .pt" in error_of(tmp_path / "notes.txt")
    assert "git lfs pull" in error_of(tmp_path / "lfs.pt")


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_files_are_called_damaged(kind: str, keep: float, source: Net, tmp_path: Path):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    if kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    assert "is damaged" in error_of(path)


def test_other_bytes_are_called_damaged(tmp_path: Path):
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(b"<html>404 not found</html>" * 10)
        assert "is damaged" in error_of(tmp_path / name)


def test_pickled_code_is_never_run(source: Net, tmp_path: Path):
    torch.save(source, tmp_path / "whole.pt")
    assert "holds pickled code" in error_of(tmp_path / "whole.pt")
    mark = tmp_path / "ran"
    torch.save({"state_dict": source.state_dict(), "x": Exploit(mark)}, tmp_path / "evil.pt")
    message = error_of(tmp_path / "evil.pt")
    assert "holds pickled code" in message
    assert "torch.save(model.state_dict(), 'weights.pt')" in message
    assert not mark.exists()


class Exploit:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"log": {"acc": 1.0}}, 3])
def test_files_without_tensors(content: object, tmp_path: Path):
    torch.save(content, tmp_path / "a.pt")
    assert "holds no weights" in error_of(tmp_path / "a.pt")


def test_a_mismatch_names_the_first_of_each_kind(source: Net, tmp_path: Path):
    content = source.state_dict()
    del content["bn1.bias"], content["layer1.0.bias"]
    content["extra.weight"] = torch.zeros(1)
    content["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    torch.save(content, tmp_path / "a.pt")
    message = error_of(tmp_path / "a.pt")
    assert "2 of 10 tensors missing (first 'bn1.bias')" in message
    assert "1 unexpected (first 'extra.weight')" in message
    assert "1 of another shape (conv1.weight is [4,3,3,3] here, [64,3,7,7] in the file)" in message


def test_another_number_of_classes_is_recognised(source: Net, tmp_path: Path):
    torch.save(source.state_dict(), tmp_path / "a.pt")
    message = error_of(tmp_path / "a.pt", Net(classes=7))
    assert "it has 10 classes in the file and 7 here" in message
    assert "num_classes=10" in message


def test_not_strict_loads_what_agrees_and_reports_the_rest(source: Net, tmp_path: Path):
    content = source.state_dict()
    del content["bn1.bias"]
    content["extra.weight"] = torch.zeros(1)
    torch.save(content, tmp_path / "a.pt")
    net = Net(classes=7)
    report = load_checkpoint(net, tmp_path / "a.pt", strict=False)
    assert torch.equal(net.conv1.weight, source.conv1.weight)
    assert report.missing == ("bn1.bias",)
    assert report.unexpected == ("extra.weight",)
    assert report.misshapen == ("fc.weight", "fc.bias")
    assert report.loaded == 7
    with pytest.raises(CheckpointError, match=r"nothing in .* fits"):
        load_checkpoint(nn.PReLU(), tmp_path / "a.pt", strict=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["layer1.0.weight", "bn1.running_var"])
def test_weights_that_are_not_finite_are_named(
    name: str, value: float, source: Net, tmp_path: Path
):
    with torch.no_grad():
        source.state_dict()[name].view(-1)[0] = value
    with pytest.raises(CheckpointError, match=name):
        check_finite(source)
    torch.save(source.state_dict(), tmp_path / "a.pt")
    assert f"in '{name}'" in error_of(tmp_path / "a.pt")


def test_finite_models_and_attention_masks_pass():
    net = Net()
    check_finite(net)
    net.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(net)
    net.mask[0] = float("nan")
    with pytest.raises(CheckpointError, match="buffer 'mask' holds NaN"):
        check_finite(net)
