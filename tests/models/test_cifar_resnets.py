from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shoal import models
from shoal.errors import ConfigError
from shoal.models.small import BasicBlock

WEIGHTS = Path(__file__).resolve().parents[2].parent / "shared" / "weights"

needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed"
)


def macs(model: nn.Module, *shape: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "parameters", "rectifiers"),
    [
        (models.cifar_resnet20, 269_722, 19),
        (models.cifar_resnet32, 464_154, 31),
        (models.cifar_resnet44, 658_586, 43),
        (models.cifar_resnet56, 853_018, 55),
        (models.cifar_resnet110, 1_727_962, 109),
    ],
)
def test_sizes_are_the_published_ones(build, parameters: int, rectifiers: int, monkeypatch):
    calls = []
    relu = F.relu
    monkeypatch.setattr(F, "relu", lambda x: calls.append(x) or relu(x))
    model = build()
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert count_parameters(model) == parameters
    assert len(calls) == rectifiers


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (models.cifar_resnet20, 40.55),
        (models.cifar_resnet32, 68.86),
        (models.cifar_resnet56, 125.49),
        (models.cifar_resnet110, 252.89),
    ],
)
def test_macs_are_the_published_ones(build, millions: float):
    assert macs(build(), 3, 32, 32) / 1e6 == pytest.approx(millions, abs=0.01)


def test_shortcut_subsamples_and_pads_a_quarter_of_the_width_on_each_side():
    block = BasicBlock(16, 32, stride=2)
    nn.init.zeros_(block.bn2.weight)  # the branch is zero, the shortcut remains
    x = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_width_classes_and_channels_are_options():
    model = models.cifar_resnet20(num_classes=7, in_channels=1, width=5)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 7)
    for wrong in ({"num_classes": 0}, {"width": 1.5}, {"in_channels": True}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            models.cifar_resnet20(**wrong)
    with pytest.raises(ConfigError, match="6n \\+ 2"):
        models.CifarResNet(depth=21)


@pytest.mark.parametrize(
    ("build", "file"),
    [
        (models.cifar_resnet20, "resnet20-12fca82f.th"),
        (models.cifar_resnet32, "resnet32-d509ac18.th"),
    ],
)
def test_published_weights_load(build, file: str):
    path = WEIGHTS / file
    if not path.is_file():
        pytest.skip(f"the published weights {file} are not in the shared folder")
    model = build()
    report = models.load_checkpoint(model, path)
    assert report.prefix == "module."
    assert report.missing == report.unexpected == report.misshapen == ()
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    assert torch.equal(model.linear.weight, saved["module.linear.weight"])
    assert torch.equal(model.bn1.running_var, saved["module.bn1.running_var"])


@needs_torchvision
def test_easier_resnet18_has_its_140_million_macs():
    model = models.resnet18_cifar()
    assert macs(model, 3, 32, 32) / 1e6 == pytest.approx(140.19, abs=0.01)
    assert count_parameters(model) == 11_173_962
    # Without the second block of each stage, the last one first, it is LaCoOT's ResNet-10.
    left = []
    for name in ("layer4", "layer3", "layer2", "layer1"):
        getattr(model, name)[1] = torch.nn.Identity()
        left.append(macs(model, 3, 32, 32) / 1e6)
    assert left == pytest.approx([121.31, 102.44, 83.56, 64.69], abs=0.01)


@needs_torchvision
def test_mobilenetv2_for_cifar_ends_at_an_eighth_of_the_resolution():
    torchvision = models.import_torchvision()
    model = models.mobilenetv2_cifar(num_classes=10).eval()
    with torch.no_grad():
        assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)
    original = torchvision.models.mobilenet_v2(num_classes=10)
    assert count_parameters(model) == count_parameters(original)


@pytest.mark.long
def test_digits_network_learns_the_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]
    model = models.digits_resnet()
    epochs, batch = 5, 50
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * 28)
    for _ in range(epochs):
        for rows in train[torch.randperm(len(train))].split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        correct = model.eval()(x[test]).argmax(1) == y[test]
    assert 100 * correct.float().mean() >= 97


def test_digits_network_calls_thirteen_rectifiers():
    calls = []
    model = models.digits_resnet()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda *args: calls.append(args))
    model(torch.zeros(2, 1, 8, 8))
    assert len(calls) == 13
