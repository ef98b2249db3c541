"""Small strided convolutions, whose backward pass oneDNN gets wrong on CPUs with AVX2."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import shoal
import shoal.onednn
import small_runs
from shoal.onednn import safe_convolutions

# Without `safe_convolutions` both scripts abort. The environment variable makes
# CPUs with AVX-512 compute as those without it.
TRAIN_BOTH_WAYS = """
import copy, torch
from shoal.models import load_model
from shoal.training import fit

torch.manual_seed(0)
net = load_model("shoal:digits_resnet?width=4")
twin = copy.deepcopy(net)
data = [(torch.randn(50, 1, 8, 8), torch.randint(0, 10, (50,))) for _ in range(20)]
recipe = {"precision": "fp32", "lr": 0.001}
notes = fit(net, data, epochs=2, recipe={**recipe, "channels_last": True}).notes
plain = fit(twin, data, epochs=2, recipe={**recipe, "channels_last": False}).notes
assert len(notes) == 1 and "oneDNN" in notes[0] and plain == (), (notes, plain)
for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
"""

CRITERIA = """
import torch
import shoal
from shoal.models import load_model

torch.manual_seed(0)
def images(form):
    draw = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(50, 1, 8, 8, generator=draw).contiguous(memory_format=form),
            torch.randint(0, 10, (50,), generator=draw),
        )
        for _ in range(10)
    ]

model = load_model("shoal:digits_resnet?width=4").eval()
network = shoal.capture(model, torch.randn(2, 1, 8, 8))
for name in ("taylor", "grasp"):
    wanted = shoal.score(network, images(torch.contiguous_format), name)
    network.to(memory_format=torch.channels_last)
    found = shoal.score(network, images(torch.channels_last), name)
    network.to(memory_format=torch.contiguous_format)
    for block, value in wanted.items():
        assert abs(found[block] - value) <= 1e-3 * abs(value) + 1e-6, (name, block)
"""


@pytest.fixture
def with_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this CPU count as one that has the defect."""
    monkeypatch.setattr(shoal.onednn, "_cpu_has_defect", lambda: True)


@pytest.mark.long
def test_small_strided_convolutions_train_as_contiguous_ones() -> None:
    script = TRAIN_BOTH_WAYS + CRITERIA
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _conv(channels: int = 4, **options: object) -> nn.Module:
    return nn.Conv2d(channels, 8, 1, **{"stride": 2, **options})


def _transposed(channels: int = 4, **options: object) -> nn.Module:
    return nn.ConvTranspose2d(8, channels, 1, **{"stride": 2, "output_padding": 1, **options})


def _outcome(layer: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Return a layer's output and the gradients of its input and parameters, up to the second."""
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad((y * weights).square().sum(), wanted, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
    return [y, *first, *second]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("make", "channels", "stride"),
    [(_conv, 4, 2), (_conv, 2, (1, 2)), (_conv, 7, (3, 2)), (_transposed, 4, 2)],
)
@pytest.mark.usefixtures("with_defect")
def test_the_other_way_computes_the_same(make, channels, stride, bias) -> None:
    torch.manual_seed(0)
    layer = make(channels, stride=stride, bias=bias).double()
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(3, layer.in_channels, 6, 6, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(layer(x))
    wanted = _outcome(layer, x, weights)
    with safe_convolutions(layer) as notes:
        found = _outcome(layer, x, weights)
    assert len(notes) == 1
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert list(layer.state_dict()) == list(before)
    assert all(torch.equal(layer.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize(
    "layer",
    [
        _conv(1),
        _conv(8),
        _conv(stride=1),
        _conv(stride=5),
        _conv(padding=2),
        _conv(groups=2),
        nn.Conv2d(4, 8, 3, 2, 1),
        _transposed(8),
        _transposed(output_padding=0),
        _transposed(stride=1, output_padding=0),
        _conv().requires_grad_(False),
    ],
    ids=str,
)
@pytest.mark.usefixtures("with_defect")
def test_what_is_safe_stays_as_it_is(layer: nn.Module) -> None:
    x = torch.randn(2, layer.in_channels, 8, 8).contiguous(memory_format=torch.channels_last)
    with safe_convolutions(nn.Sequential(layer, _conv())) as notes:
        layer(x)
    assert notes == []


@pytest.mark.usefixtures("with_defect")
def test_contiguous_images_stay_as_they_are() -> None:
    layer = _conv()
    with safe_convolutions(layer) as notes:
        layer(torch.randn(2, 4, 8, 8))
        with torch.no_grad():
            layer(torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last))
    assert notes == []


@pytest.mark.usefixtures("with_defect")
def test_operations_that_are_no_modules_are_covered() -> None:
    weight = torch.randn(8, 4, 1, 1, requires_grad=True)
    x = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    holder = nn.Module()
    holder.weight = nn.Parameter(weight)
    calls = (
        lambda: nn.functional.conv2d(x, weight, stride=2),
        lambda: torch.ops.aten.conv2d.default(x, weight, None, [2, 2]),
        lambda: torch.ops.aten.conv2d.padding(x, weight, None, [2, 2], "valid"),
    )
    for call in calls:
        with safe_convolutions(holder) as notes:
            found = call()
        assert len(notes) == 1
        torch.testing.assert_close(found, call())


@pytest.mark.usefixtures("with_defect")
def test_a_users_own_training_is_covered() -> None:
    model = nn.Sequential(_conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    network = shoal.capture(model.eval(), images)
    lab = small_runs.lab(network, [], [], fit=lambda given: given(images).sum().backward())
    lab.train(1)
    assert len(lab.notes) == 1


@pytest.mark.parametrize(
    ("limit", "avx512", "defect"),
    [
        ("", True, False),
        ("", False, True),
        ("AVX2", True, True),
        ("avx2_vnni", True, True),
        ("AVX", False, False),
        ("AVX512_CORE", True, False),
        ("AVX512_CORE", False, True),
    ],
)
def test_the_cpu_and_its_limit_decide(
    limit: str, avx512: bool, defect: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    with safe_convolutions(_conv()) as notes:
        _conv()(torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last))
    assert bool(notes) is defect
