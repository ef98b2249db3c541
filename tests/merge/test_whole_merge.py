"""A merge holds for all inputs that the network is for, or it is undone as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.merge import merge as merging
from shoal.merge.merge import merge_
from shoal.network import capture


class Around(nn.Module):
    """A function of the input before a layer, and of its output after it."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor],
        layer: nn.Module,
        after: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.before, self.layer, self.after = before, layer, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.layer(self.before(x)))


MODELS = {
    "before a convolution": (
        Around(lambda x: (x - 0.5) * 2.0, nn.Conv1d(3, 4, 3), F.relu), (2, 3, 40), (2, 3, 60),
    ),
    "channels last": (
        Around(lambda x: x.permute(0, 2, 3, 1), nn.Linear(3, 5), lambda x: F.gelu(x) * 0.5 + 1.0),
        (2, 3, 8, 6), (2, 3, 12, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("policy", ["fold", "always"])
@pytest.mark.parametrize("name", MODELS)
def test_numbers_that_are_merged_go_with_inputs_of_other_sizes(name: str, policy: str) -> None:
    model, shape, other = MODELS[name]
    network = capture(model.eval(), torch.randn(shape))
    assert len(merge_(network, policy=policy).merged) == 1
    for size in (shape, other):
        x = torch.randn(size)
        torch.testing.assert_close(network(x), model(x))
    code = network.code
    assert merge_(network, policy=policy).merged == []
    assert network.code == code


def test_a_merge_that_never_agrees_is_undone_and_each_region_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merging._Verifier, "agrees", lambda self, attempt: False)
    layers = [nn.Linear(4, 8), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 3)]
    network = capture(nn.Sequential(*layers).eval(), torch.randn(2, 4))
    code, x = network.code, torch.randn(5, 4)
    expected = network(x)
    report = merge_(network, policy="always")
    reason = "merging changed the output"
    assert [(kept.layers, kept.reason) for kept in report.kept] == [
        (("0", "1"), reason), (("3", "4"), reason),
    ]  # fmt: skip
    assert [kept.region for kept in report.kept] == [found.region for found in report.boundaries]
    assert (report.merged, report.depth_before, report.depth_after) == ([], 4, 4)
    assert (network.code, len(network.plan)) == (code, 0)
    assert torch.equal(network(x), expected)


def settled(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Give a norm statistics that training could leave."""
    nn.init.normal_(norm.running_mean, 0.0, 0.3)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return norm


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_norm_of_float32_folds_into_a_layer_of_half_precision(norm_first: bool) -> None:
    """They need to agree to the rounding of the coarser type alone."""
    torch.manual_seed(0)
    norm, conv = settled(nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 3).bfloat16()
    layers = (norm, conv) if norm_first else (conv, norm)
    model = nn.Sequential(*layers, nn.ReLU()).eval()
    x = torch.randn(4, 4, 8, 8).bfloat16()
    network = capture(model, x)
    report = merge_(network, policy="fold")
    assert [merged.layers for merged in report.merged] == [("0", "1")]
    assert report.kept == []
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(network(x), model(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("policy", ["fold", "always"])
def test_a_norm_folds_where_the_network_reads_images_of_bytes(policy: str) -> None:
    """The division by 255 stays: no layer could read the bytes in its place."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), settled(nn.BatchNorm2d(4)))
    model = Around(lambda x: x / 255, layers, F.relu).eval()
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    network = capture(model, pixels)
    report = merge_(network, policy=policy)
    assert [merged.layers for merged in report.merged] == [("layer.0", "layer.1")]
    assert report.kept == []
    torch.testing.assert_close(network(pixels), model(pixels))
