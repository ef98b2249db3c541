"""A captured network is right at another size of its inputs, or says in one line that it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shoal
from shoal.compat import import_torchvision
from shoal.errors import CaptureError, PlanError
from shoal.network.input_sizes import Sizes
from shoal.surgery import linearize_


def assert_same(model: nn.Module, net: Any, *inputs: Any) -> None:
    with torch.no_grad():
        expected, found = model(*inputs), net(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class SamePadded(nn.Module):
    """Pads by an amount that depends on the height and width, as TensorFlow's networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = (max((-(-n // 2) - 1) * 2 + 3 - n, 0) for n in (height, width))
        x = F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Shuffle(nn.Module):
    """Views by the height and width, with channels between groups exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        b, c, h, w = x.size()
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.fc(x.flatten(2).mean(2))


class Text(nn.Module):
    """A transformer of token numbers, with a mask and embeddings of positions."""

    def __init__(self, longest: int = 512) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.positions = nn.Embedding(longest, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.fc = nn.Linear(8, 2)
        self.longest = longest

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        length = ids.shape[1]
        if length > self.longest:
            ids = ids[:, : self.longest]
        x = self.tokens(ids) + self.positions(torch.arange(length, device=ids.device))
        x = self.layer(x, src_key_padding_mask=mask == 0)
        return self.fc(x[:, 0])


class Branching(nn.Module):
    def __init__(self, condition: str) -> None:
        super().__init__()
        self.fc = nn.Conv2d(3, 2, 1)
        self.condition = compile(condition, "", "eval")

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if eval(self.condition, {"x": x}):
            x = x * 2
        return x.relu().mean((2, 3))


def text_inputs(batch: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, 20, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return ids, mask


@pytest.mark.long
def test_a_convolutional_network_is_for_any_height_and_width() -> None:
    model = shoal.models.cifar_resnet20().eval()
    net = shoal.capture(model, torch.randn(2, 3, 32, 32))
    assert net.inputs.sizes == Sizes(((1,),))
    for size in ((32, 32), (33, 47), (8, 100)):
        assert_same(model, net, torch.randn(3, 3, *size))
    with pytest.raises(CaptureError, match=r"shape \[2, 1, 32, 32\].* \[batch, 3, any, any\]"):
        net(torch.randn(2, 1, 32, 32))
    with pytest.raises(CaptureError, match=r"shape \[3, 32, 32\]"):
        net(torch.randn(3, 32, 32))


def test_numbers_that_follow_a_dimension_are_read_off_it() -> None:
    model = Shuffle().eval()
    net = shoal.capture(model, torch.randn(2, 3, 16, 16))
    for size in ((16, 16), (31, 9), (5, 40)):
        assert_same(model, net, torch.randn(3, 3, *size))


def test_numbers_computed_from_a_size_fix_it(tmp_path: Path) -> None:
    model = SamePadded().eval()
    net = shoal.capture(model, torch.randn(2, 3, 16, 16))
    assert_same(model, net, torch.randn(5, 3, 16, 16))
    shoal.save(net, tmp_path / "net")
    loaded = shoal.load(tmp_path / "net")
    for network in (net, net.copy(), loaded):
        with pytest.raises(CaptureError, match=r"\[1, 3, 17, 16\].* for \[batch, 3, 16, 16\]"):
            network(torch.randn(1, 3, 17, 16))


@pytest.mark.long
def test_a_text_model_takes_any_length() -> None:
    model = Text().eval()
    net = shoal.capture(model, text_inputs(2, 6))
    for length in (6, 3, 11):
        assert_same(model, net, *text_inputs(4, length))
    with pytest.raises(CaptureError, match=r"dimension 1 of input 0 <= 512 alone"):
        net(*text_inputs(2, 513))


@pytest.mark.parametrize(
    ("condition", "right", "wrong"),
    [
        ("x.shape[0] > 3", (2, 8, 8), (4, 8, 8)),
        ("x.size(0) % 2 == 0", (4, 8, 8), (3, 8, 8)),
        ("x.shape[-1] > 100", (2, 8, 9), (2, 8, 101)),
        ("x.size()[2] * 2 < 20", (2, 8, 8), (2, 10, 8)),
        ("x.shape[2] % 2", (2, 8, 8), (2, 9, 8)),
        ("x.shape[2:] == (8, 8)", (2, 8, 8), (2, 9, 8)),
        ("min(x.shape[2], 30) == 30", (2, 8, 8), (2, 31, 8)),
    ],
)
def test_a_branch_on_a_size_is_right_or_refused(
    condition: str, right: tuple[int, ...], wrong: tuple[int, ...]
) -> None:
    model = Branching(condition).eval()
    net = shoal.capture(model, torch.randn(2, 3, 8, 8))
    assert_same(model, net, torch.randn(right[0], 3, *right[1:]))
    with pytest.raises(CaptureError, match="the network is for"):
        net(torch.randn(wrong[0], 3, *wrong[1:]))


@pytest.mark.parametrize("condition", ["x.shape[1] == 2", "x.dim() == 4", "x.shape[0] > 0"])
def test_a_branch_that_no_size_decides_fixes_nothing(condition: str) -> None:
    model = Branching(condition).eval()
    net = shoal.capture(model, torch.randn(2, 3, 8, 8))
    assert net.inputs.sizes == Sizes(((1,),))
    assert_same(model, net, torch.randn(7, 3, 5, 11))


@pytest.mark.long
def test_merged_networks_keep_what_was_free() -> None:
    import_torchvision()
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    cases = [
        (
            mobilenet_v2(num_classes=5, width_mult=0.25).eval(),
            (2, 3, 64, 64),
            [(1, 3, 65, 65), (2, 3, 96, 32)],
        ),
        (
            nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 4, 1)).eval(),
            (2, 3, 20),
            [(1, 3, 31), (2, 3, 7)],
        ),
        (
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(),
            (2, 5, 6),
            [(1, 9, 6), (3, 2, 6)],
        ),
    ]
    for model, example, others in cases:
        net = shoal.capture(model.double(), torch.randn(example).double())
        linearize_(net, [site.name for site in net.sites][::2], how="identity")
        merged = net.copy()
        assert shoal.merge_(merged, policy="always").merged
        for shape in (example, *others):
            x = torch.randn(shape).double()
            with torch.no_grad():
                torch.testing.assert_close(merged(x), net(x), rtol=1e-9, atol=1e-9)


def test_a_compiled_network_refuses_too() -> None:
    net = shoal.capture(Branching("x.shape[0] > 3").eval(), torch.randn(2, 3, 8, 8))
    compiled = torch.compile(net, backend="eager", fullgraph=True, dynamic=False)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize(
    "text",
    ["batch", "__import__('os')", "batch.real > 1", "batch ** 9 > 1", "x > 1",
     "batch > 1.5", "batch > 'a'", "(lambda: 1)() > 0", "size_0_1[0] > 1", "1 > " + "9" * 2000],
)  # fmt: skip
def test_conditions_are_comparisons_of_sizes(text: str) -> None:
    with pytest.raises(PlanError, match="no condition on sizes"):
        Sizes((), (text,))


def test_what_divides_by_nothing_does_not_hold() -> None:
    sizes = Sizes((), ("7 % (batch - 2) == 1",))
    held = [sizes.holds(sizes.conditions[0], [torch.empty(n)]) for n in (2, 4, 5, 9)]
    assert held == [False, True, True, False]


class ByTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = x.reshape(batch * channels * height, width)
        factor = (height - batch) * (2 * batch - width) // 2
        if batch > width * 100:
            factor = factor + 1
        return self.a(rows).reshape(channels * batch, height, 4).sum() * factor + x.mean((1, 2, 3))


def test_sizes_are_computed_with_the_batch_and_compared_with_it() -> None:
    model = ByTheBatch().eval()
    net = shoal.capture(model, torch.randn(3, 2, 6, 5))
    for batch in (1, 2, 4):
        assert_same(model, net, torch.randn(batch, 2, 6, 5))
