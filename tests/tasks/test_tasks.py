"""Laws that hold for every task: of losses, rows, quality, distance between outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, DataError, NameNotFoundError, TrainingError
from shoal.options.task import BUILT_IN
from shoal.tasks import Task, find_task, tasks, with_own
from shoal.tasks.task import losses_of
from shoal.training import evaluate
from shoal.training.objective import distillation_losses

BATCH = 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES: dict[str, tuple[Tensor, Tensor]] = {
    "classify": (drawn(BATCH, 4), torch.tensor([0, 1, 2, 3, 0, 1])),
    "multilabel": (drawn(BATCH, 4), (drawn(BATCH, 4, seed=1) > 0).double()),
    "binary": (drawn(BATCH, 1), (drawn(BATCH, 1, seed=1) > 0).double()),
    "regress": (drawn(BATCH, 2), drawn(BATCH, 2, seed=1)),
    "segment": (drawn(BATCH, 3, 4, 4), (drawn(BATCH, 4, 4, seed=1) > 0).long()),
}


def perfect(name: str) -> tuple[Tensor, Tensor]:
    """Return outputs that answer everything right."""
    target = CASES[name][1]
    if name in ("classify", "segment"):
        classes = CASES[name][0].shape[1]
        return nn.functional.one_hot(target, classes).movedim(-1, 1).double(), target
    return (target if name == "regress" else 2 * target - 1), target


def test_the_options_that_flags_are_made_of_are_those_of_the_tasks() -> None:
    own = {name for name in tasks if tasks[name].__module__.startswith("shoal.")}
    assert {name: tasks[name].Options for name in own} == BUILT_IN


@pytest.mark.parametrize("name", CASES)
def test_quality_is_100_for_right_answers_and_depends_on_no_batches(name: str) -> None:
    outputs, target = CASES[name]
    right, _ = perfect(name)
    assert evaluate(nn.Identity(), [(right, target)], task=name).quality == pytest.approx(100)
    whole = evaluate(nn.Identity(), [(outputs, target)], task=name)
    parts = [(outputs[i : i + 4], target[i : i + 4]) for i in (4, 0)]
    found = evaluate(nn.Identity(), parts, task=name)
    assert found.quality == pytest.approx(whole.quality)
    assert found.loss == pytest.approx(whole.loss)
    assert found.name == find_task(name).quality_name
    assert whole.chance is not None
    assert whole.chance < 100


@pytest.mark.parametrize("name", CASES)
def test_losses_are_one_for_each_sample_and_its_own(name: str) -> None:
    task, (outputs, target) = find_task(name), CASES[name]
    losses = task.losses(outputs, task.check(outputs, target))
    assert losses.shape == (BATCH,)
    for i in range(BATCH):
        own = slice(i, i + 1)
        alone = task.losses(outputs[own], task.check(outputs[own], target[own]))
        torch.testing.assert_close(alone[0], losses[i])


@pytest.mark.parametrize("name", CASES)
def test_outputs_diverge_from_others_and_not_from_themselves(name: str) -> None:
    task, (outputs, _) = find_task(name), CASES[name]
    student = outputs.clone().requires_grad_()
    losses = distillation_losses(task, student, outputs, 3.0)
    assert losses.shape == (BATCH,)
    losses.sum().backward()
    assert losses.abs().max() < 1e-12
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12
    assert (task.divergence(outputs, outputs.flip(0)) >= 0).all()
    with pytest.raises(TrainingError, match="same task"):
        distillation_losses(task, outputs, outputs[:2], 1.0)


@pytest.mark.parametrize("name", CASES)
def test_an_output_that_is_nan_is_a_wrong_answer(name: str) -> None:
    task, (right, target) = find_task(name), perfect(name)
    broken = right.clone().double()
    broken[1] = torch.nan
    rows = task.rows(broken, task.check(broken, target))
    assert task.quality(rows) < 100


@pytest.mark.parametrize("name", CASES)
def test_a_sample_that_is_nan_is_named(name: str) -> None:
    outputs, target = CASES[name]
    broken = outputs.clone()
    broken[2] = torch.nan
    with pytest.raises(DataError, match=r"sample 2 of batch 1 .* 1 of the 6 in that batch"):
        evaluate(nn.Identity(), [(outputs, target), (broken, target)], task=name)


def test_shares_of_right_answers_are_told_where_there_are_any() -> None:
    for name in CASES:
        task, (right, target) = find_task(name), perfect(name)
        assert task.has_hits is (name != "regress")
        if task.has_hits:
            assert (task.hits(right, task.check(right, target)) == 1).all()
    with pytest.raises(ConfigError, match="judge by the loss"):
        find_task("regress").hits(drawn(2, 1), drawn(2, 1))


def test_unknown_tasks_and_options_are_named() -> None:
    with pytest.raises(NameNotFoundError, match="did you mean 'segment'"):
        find_task("segmnet")
    with pytest.raises(ConfigError, match="did you mean 'ignore_index'"):
        find_task("segment?ignore_idx=0")
    with pytest.raises(ConfigError, match="is not a task"):
        find_task("collections:OrderedDict")
    assert find_task("segment?ignore_index=0") == find_task("segment", ignore_index=0)
    assert find_task("segment?ignore_index=0") != find_task("segment")
    assert find_task(find_task("segment"), ignore_index=7).options.ignore_index == 7


# ---------------------------------------------------------------------- one's own


def mean_output(network: nn.Module, data: Any) -> float:
    assert not network.training
    return float(torch.cat([network(x) for x, _ in data]).mean())


def test_a_quality_of_ones_own_has_its_functions_name() -> None:
    x, y = torch.full((4, 3), 7.0), torch.zeros(4).long()
    task = with_own(find_task(), evaluate=mean_output)
    found = evaluate(nn.Identity().train(), [(x, y)], task=task)
    assert (found.quality, found.name, found.loss) == (7.0, "mean output", None)
    assert with_own(find_task(), evaluate=lambda *_: 1.0).quality_name == "quality"
    for wrong in (float("nan"), {"mAP": 1.0}, True, None):
        task = with_own(find_task(), evaluate=lambda *_, found=wrong: found)
        with pytest.raises(ConfigError, match="a number in points"):
            evaluate(nn.Identity(), [(x, y)], task=task)


def test_a_loss_of_ones_own_gets_what_the_network_returns_and_may_be_a_mean() -> None:
    x, y = drawn(4, 3), torch.tensor([0, 1, 2, 0])

    def each(returned: dict[str, Tensor], target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(returned["logits"], target, reduction="none")

    class Model(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"features": x, "logits": x}

    usual = evaluate(Model(), [(x, y)])
    for loss in (each, lambda *both: each(*both).mean()):
        found = evaluate(Model(), [(x, y)], task=with_own(find_task(), loss=loss))
        assert found.loss == pytest.approx(usual.loss)
        assert (found.quality, found.name) == (usual.quality, "top-1")
    with pytest.raises(TrainingError, match=r"of shape \[4, 3\]"):
        evaluate(Model(), [(x, y)], task=with_own(find_task(), loss=lambda r, t: r["logits"]))


def test_with_both_of_ones_own_nothing_is_asked_of_outputs_and_targets() -> None:
    task = with_own(find_task(), loss=lambda r, t: r[0].mean(1), evaluate=lambda *_: 5.0)
    returned, target = [drawn(2, 3), "text"], [{"boxes": drawn(1, 4)}, {"boxes": drawn(3, 4)}]
    output = task.output(returned)
    assert losses_of(task, output, task.check(output, target), 2).shape == (2,)
    assert not task.has_hits
    assert not task.has_divergence
    with pytest.raises(ConfigError, match="set distill to 0"):
        task.divergence(output, output)
    with pytest.raises(ConfigError, match="loss is a str"):
        with_own(find_task(), loss="mse")  # type: ignore[arg-type]


def test_a_task_of_ones_own_is_a_subclass(tmp_path: Any) -> None:
    (tmp_path / "near_task.py").write_text(
        "import shoal\nfrom shoal.tasks import find_task\n\n"
        "class Near(type(find_task('classify'))):\n    quality_name = 'near'\n"
    )
    task = find_task(f"{tmp_path / 'near_task.py'}:Near?output_index=0")
    assert isinstance(task, Task)
    assert (task.name, task.quality_name, task.options.output_index) == ("Near", "near", 0)


class Own(Task):
    """A right one, of which tests spoil a part."""

    quality_name, expected = "right", "[batch, classes]"

    def fits(self, output: Tensor) -> bool:
        return output.ndim == 2

    def check(self, output: Tensor, target: Any, values: bool = True) -> Any:
        return target

    def losses(self, output: Tensor, target: Any, smoothing: float = 0.0) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none")

    def hits(self, output: Tensor, target: Any) -> Tensor:
        return output.argmax(1) == target


SPOILT: list[tuple[str, Any, str]] = [
    ("hits", lambda self, o, t: None, "hits of the task 'Spoilt' returned None: return the share"),
    ("hits", lambda self, o, t: 0.5, r"hits .* returned 0.5: .* a tensor \[4\] here"),
    ("hits", lambda self, o, t: torch.tensor(1.0), r"hits .* returned a tensor of shape \[\]"),
    ("hits", lambda self, o, t: o > 0, r"hits .* returned a tensor of shape \[4, 3\]"),
    ("hits", lambda self, o, t: o[:, 0] * torch.nan, "quality of the task 'Spoilt' returned nan"),
    ("rows", lambda self, o, t: None, r"rows .* returned None: .* a tensor \[4, k\] here"),
    ("rows", lambda self, o, t: o[:, 0], r"rows .* returned a tensor of shape \[4\]"),
    ("rows", lambda self, o, t: o[:2], r"rows .* returned a tensor of shape \[2, 3\]"),
    ("rows", lambda self, o, t: o[:, : 1 + int(t[0])], "1 columns for one batch and 2 for another"),
    ("quality", lambda self, rows: None, "quality .* returned None: let it return .* a number"),
    ("quality", lambda self, rows: "good", "quality .* returned 'good'"),
    ("quality", lambda self, rows: True, "quality .* returned True"),
    ("quality", lambda self, rows: float("inf"), "quality .* returned inf"),
    ("quality", lambda self, rows: rows[:, 0], r"quality .* returned a tensor of shape \[8\]"),
    ("losses", lambda self, o, t, smoothing=0: None, "the loss function returned None"),
]


@pytest.mark.parametrize(("part", "given", "message"), SPOILT)
def test_what_a_task_of_ones_own_returns_wrongly_is_named_in_one_line(
    part: str, given: Any, message: str
) -> None:
    task = type("Spoilt", (Own,), {part: given})()
    batches = [(drawn(4, 3), torch.tensor(labels)) for labels in ([0, 1, 2, 0], [1, 1, 2, 0])]
    with pytest.raises((ConfigError, TrainingError), match=message) as caught:
        evaluate(nn.Identity(), batches, task=task)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "seven", [7, 7.0, torch.tensor(7), torch.tensor([7.0]), np.float32(7), np.int64(7), np.array(7)]
)
def test_a_quality_may_be_any_kind_of_number(seven: Any) -> None:
    batches = [(drawn(4, 3), torch.tensor([0, 1, 2, 0]))]
    judge = with_own(find_task(), evaluate=lambda network, data: seven)
    own = type("Own7", (Own,), {"quality": lambda self, rows: seven})()
    judges = type("Judges7", (Own,), {"judge": lambda self, network, data: seven})()
    for task in (judge, own, judges):
        quality = evaluate(nn.Identity(), batches, task=task).quality
        assert (type(quality), quality) == (float, 7.0)


def test_a_judge_that_returns_no_number_is_told_in_a_line() -> None:
    task = type("Judges", (Own,), {"judge": lambda self, network, data: math.nan})()
    message = "^judge of the task 'Judges' returned nan: let it return the quality as a number"
    with pytest.raises(ConfigError, match=message):
        evaluate(nn.Identity(), [(drawn(4, 3), torch.tensor([0, 1, 2, 0]))], task=task)


def test_a_task_that_is_not_complete_is_named() -> None:
    with pytest.raises(ConfigError, match="'Half' lacks check, losses"):
        find_task(type("Half", (Task,), {"fits": lambda self, output: True}))
