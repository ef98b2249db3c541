"""Training on mixed pairs: what is mixed with what, what the loss is, and how it is repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shoal
from shoal.data.batch import Batch, before
from shoal.errors import ConfigError
from shoal.options import Recipe
from shoal.tasks import find_task
from shoal.training import fit
from shoal.training.objective import Hooks, Objective


def test_each_sample_is_mixed_with_the_one_before_it() -> None:
    x, y = torch.randn(4, 3), torch.arange(4)
    found = Batch((x,), {"z": x[:, 0]}, y).mixed(torch.tensor(0.75))
    for i in range(4):
        assert torch.allclose(found.args[0][i], 0.75 * x[i] + 0.25 * x[i - 1])
    assert torch.allclose(found.kwargs["z"], found.args[0][:, 0])
    assert torch.equal(found.target, y)
    assert before({"a": y, "b": ["p", "q", "r", "s"]})["b"] == ["s", "p", "q", "r"]
    assert before(y).tolist() == [3, 0, 1, 2]


def test_whole_numbers_are_refused() -> None:
    tokens = [(torch.ones(8, 3, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))]
    model = nn.Sequential(nn.Embedding(4, 4), nn.Flatten(), nn.ReLU(), nn.Linear(12, 2))
    for recipe in ({"recipe": {"mix": 1.0}}, {"final_recipe": "patient", "final_epochs": 1}):
        with pytest.raises(ConfigError, match="set mix to 0"):  # before anything is trained
            shoal.compress(model, tokens, tokens, **recipe)


@pytest.mark.parametrize("distill", [0.0, 0.7, 1.0])
def test_the_loss_is_that_of_both_targets_by_their_shares(distill: float) -> None:
    torch.manual_seed(0)
    net, teacher = nn.Linear(3, 5).double(), nn.Linear(3, 5).double()
    x, y = torch.randn(6, 3).double(), torch.tensor([0, 1, 2, 3, 4, 0])
    share = torch.tensor(0.6).double()
    recipe = Recipe(mix=1.0, distill=distill, temperature=2.0)
    objective = Objective(net, recipe, find_task(), teacher, Hooks())
    loss, _ = objective(Batch((x,), {}, y).mixed(share), True, share)
    mixed = 0.6 * x + 0.4 * x.roll(1, 0)
    out = net(mixed)
    labels = 0.6 * F.cross_entropy(out, y, reduction="sum") + 0.4 * F.cross_entropy(
        out, y.roll(1), reduction="sum"
    )
    soft = 4.0 * F.kl_div(
        F.log_softmax(out / 2, 1), F.softmax(teacher(mixed) / 2, 1), reduction="sum"
    )
    assert torch.allclose(loss, (1 - distill) * labels + distill * soft)


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(3)
    return [(torch.randn(8, 3), torch.randint(0, 5, (8,))) for _ in range(4)]


def trained(**options: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = nn.Linear(3, 5)
    fit(net, batches(), recipe={"lr": 0.1, "precision": "fp32", "mix": 1.0}, **options)
    return net.state_dict()


def test_a_fit_that_goes_on_mixes_as_the_whole_one(tmp_path: Path) -> None:
    def stop(report: Any) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    whole = trained(epochs=4)
    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(epochs=4, checkpoint=path, on_epoch=stop)
    again = trained(epochs=4, checkpoint=path)
    for name, value in whole.items():
        assert torch.equal(value, again[name])
    plain = nn.Linear(3, 5)
    torch.manual_seed(1)
    plain.reset_parameters()
    fit(plain, batches(), epochs=4, recipe={"lr": 0.1, "precision": "fp32"})
    assert not torch.equal(plain.weight, whole["weight"])


def test_older_runs_do_not_say_it() -> None:
    assert "mix" not in Recipe().identity()
    assert Recipe(mix=0.5).identity()["mix"] == 0.5
