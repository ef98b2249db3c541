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
