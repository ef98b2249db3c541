"""Sixty networks of torchvision and timm, shortened, moved and exported: right, or refused.

No network of timm's here is the one that stands for its family in `test_timm_families.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_checks import evaluate, settled, timm_model, torchvision_model
from torch import Tensor, nn

import shoal
from shoal.errors import CaptureError
from shoal.network import Network
from shoal.surgery import FittedLine

TORCHVISION = {
    "alexnet": 64, "vgg11_bn": 64, "vgg13": 64, "vgg16": 64, "resnet34": 64, "resnet50": 64,
    "resnext50_32x4d": 64, "wide_resnet50_2": 64, "densenet169": 64, "googlenet": 64,
    "inception_v3": 96, "mnasnet0_5": 64, "mnasnet1_0": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "mobilenet_v3_large": 64, "efficientnet_b0": 64,
    "efficientnet_b1": 64, "efficientnet_v2_s": 64, "regnet_x_400mf": 64, "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64, "shufflenet_v2_x1_5": 64, "squeezenet1_0": 64, "squeezenet1_1": 64,
    "convnext_tiny": 64, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224, "vit_b_32": 224,
}  # fmt: skip
TIMM = {
    "tf_efficientnet_lite0": 64, "tf_efficientnetv2_b1": 64, "mobilenetv3_small_100": 64,
    "mobilenetv4_conv_small": 64, "semnasnet_100": 64, "fbnetc_100": 64, "lcnet_075": 64,
    "tinynet_d": 64, "rexnet_130": 64, "ghostnet_130": 64, "regnetx_004": 64, "regnety_004": 64,
    "resnet26d": 64, "resnetv2_50": 64, "convnextv2_femto": 64, "convnext_pico": 64,
    "deit_small_patch16_224": 224, "vit_small_patch32_224": 224, "hrnet_w18_small_v2": 64,
    "dla46_c": 64, "dpn68b": 64, "selecsls42b": 64, "res2net50_14w_8s": 64, "skresnet34": 64,
    "ese_vovnet19b_dw": 64, "cspresnet50": 64, "gernet_s": 64, "repvgg_a1": 64,
    "edgenext_x_small": 64, "mobilevitv2_075": 64,
}  # fmt: skip
WITHOUT_SLOW_WEIGHTS = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}
TOLERANCE = 1e-4  # of the largest output: sums of single precision in another order


def model_of(name: str) -> nn.Module:
    if name in TIMM:
        return settled(timm_model(name)).eval()
    return settled(torchvision_model(name, **WITHOUT_SLOW_WEIGHTS.get(name, {}))).eval()


def lines_of(network: Network) -> dict[str, FittedLine]:
    """Return a line for every third rectifier; with identities numbers explode in some networks."""
    return {
        site.name: FittedLine(
            torch.full((site.channels or 1,), 0.5), torch.full((site.channels or 1,), 0.1), 0.0
        )
        for site in network.sites[::3]
    }


def answer(network: nn.Module, images: Tensor, *, refuses: type[Exception]) -> Tensor | None:
    """Return what a network gives, None where it refuses; any other error is a fault."""
    try:
        return evaluate(network, images)
    except refuses:
        return None


def assert_right(found: Tensor | None, expected: Tensor | None, what: str) -> None:
    """Assert that an answer is the expected one, or refused; where none is expected, refused."""
    if found is None:
        return
    assert expected is not None, f"{what}: answers where it must refuse"
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    assert error < TOLERANCE, f"{what}: {error:.1e} of the largest output"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_networks_are_right_at_three_sizes_or_refuse(name: str, tmp_path: Path) -> None:
    size = {**TORCHVISION, **TIMM}[name]
    model, images = model_of(name), torch.randn(2, 3, size, size)
    network = shoal.capture(model, images)
    linear, lines = network.copy(), lines_of(network)
    shoal.linearize_(linear, list(lines), how="line", lines=lines)
    merged = linear.copy()
    shoal.merge_(merged, policy="always")
    shoal.save(merged, tmp_path / "here")
    loaded = shoal.load((tmp_path / "here").rename(tmp_path / "there"))
    shoal.export(loaded, tmp_path / "network.onnx", images)  # which compares, or raises
    for height, width in ((size, size), (size + 1, size + 1), (2 * size, size + 32)):
        other = torch.randn(1, 3, height, width)
        at, captured_size = f"{name} at {height}x{width}", (height, width) == (size, size)
        expected = answer(model, other, refuses=Exception)  # whatever its author let it raise
        # Where the model itself fails, at an odd size say, so may the network.
        refuses = Exception if expected is None else CaptureError
        found, shorter, moved = (
            answer(net, other, refuses=refuses) for net in (network, linear, loaded)
        )
        refused = [answered is None for answered in (found, shorter, moved)]
        assert not (captured_size and any(refused)), at
        assert_right(found, expected, at)
        assert_right(moved, shorter, f"{at}, merged and loaded")
        assert refused[1] == refused[2], f"{at}: merging changed what is refused"
