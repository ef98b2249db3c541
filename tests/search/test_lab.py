"""What a step does for its method: between its changes and trainings, and with trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import shoal
import small_runs
from shoal.network import Network
from shoal.search.lab import Lab
from shoal.search.setup import Listener
from shoal.surgery import drop_, linearize_
from small_runs import FakeGauge, captured, digits, facts, run, same_weights


def gone(network: Network) -> int:
    return sum(site.linearized is not None for site in network.sites)


def linearizing(name: str) -> Callable[[Network], object]:
    return lambda network: linearize_(network, [name], how="identity")


class Interrupt(Listener):
    """Ends the call after so many epochs, as Ctrl-C does."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, report: Any, epochs: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


# ---------------------------------------------------------------------- two trainings in a step


class Twice(shoal.Method):
    """Makes two rectifiers linear in its one step, and trains after each; then trains on."""

    def step(self, lab: Lab) -> bool:
        if lab.number > 1:
            return lab.done()
        for name in ("act", "last"):
            lab.linearize([name], "identity")
            lab.train()
        lab.train()
        return True


class Asked(FakeGauge):
    """A rectifier costs a point; how many were gone whenever paddings were asked for."""

    def __init__(self) -> None:
        super().__init__(digits().val, quality=lambda network: 90.0 - gone(network))
        self.asked: list[int] = []

    def paddings(self, network: Network) -> list[tuple[str, str]]:
        self.asked.append(gone(network))
        return []


def test_after_each_change_paddings_are_asked_for_and_the_quality_is_measured() -> None:
    gauge = Asked()
    result = run(method=Twice, gauge=gauge)
    assert gauge.asked == [1, 2]  # not before the third training, which follows no change
    assert [step.epochs for step in result.steps] == [0, 3]
    assert result.steps[1].top1_val_before == 88.0  # after both removals


def test_paddings_that_were_found_before_an_interruption_are_not_looked_for_again(
    tmp_path: Path,
) -> None:
    whole = run(tmp_path / "whole", method=Twice, gauge=Asked())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", method=Twice, gauge=Asked(), listener=Interrupt(2))
    again = Asked()
    result = run(tmp_path / "run", method=Twice, gauge=again)
    assert again.asked == []
    assert facts(result) == facts(whole)
    assert same_weights(result.model, whole.model)


# ---------------------------------------------------------------------- trials


class Adopts(shoal.Method):
    """Tries every rectifier and goes on with the best copy: a trained one, then a changed one."""

    def step(self, lab: Lab) -> bool:
        epochs = {1: 2, 2: 0}.get(lab.number)
        if epochs is None:
            return lab.done("two were adopted")
        left = [site.name for site in lab.network.sites if site.linearized is None]
        trials = [lab.trial(f"no {name}", linearizing(name), epochs=epochs) for name in left]
        best = max(trials, key=lambda trial: trial.quality)
        best.adopt()
        assert gone(lab.network) == lab.number
        lab.train(1)
        return True


def test_a_step_goes_on_with_the_trial_it_adopts(tmp_path: Path) -> None:
    result = run(tmp_path / "whole", method=Adopts)
    _, first, second = result.steps
    assert [first.operation, second.operation] == ["linearize", "linearize"]
    assert result.plan.names("linearize") == [*first.names, *second.names]
    assert (len(first.names), len(second.names), result.removed) == (1, 1, 2)
    assert (first.epochs, second.epochs) == (3, 1)  # those of the other trials do not count
    assert first.top1_val_before is None  # it was trained already
    assert second.top1_val_before is not None
    assert result.stopped == "two were adopted"
    for epochs in (3, 6, 1):  # in the second trial, and in the training of each step
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", method=Adopts, listener=Interrupt(epochs))
    again = run(tmp_path / "run", method=Adopts)
    assert facts(again) == facts(result)
    assert same_weights(again.model, result.model)


def test_a_users_own_training_of_a_trial_counts_where_it_is_adopted() -> None:
    trained: list[int] = []
    result = run(method=Adopts, fit=lambda network: trained.append(gone(network)))
    assert trained == [1, 1, 1, 1, 1, 2]  # four trials, what was adopted, the second step
    assert [step.epochs for step in result.steps] == [0, 3, 1]


class Drawn(TensorDataset):
    """The digits as single samples; notes which ones are asked for."""

    def __init__(self) -> None:
        batches = [*digits().train]
        super().__init__(*(torch.cat([batch[part] for batch in batches]) for part in (0, 1)))
        self.drawn: list[int] = []

    def __getitem__(self, place: int) -> tuple[Tensor, ...]:
        self.drawn.append(place)
        return super().__getitem__(place)


def test_trials_of_a_few_batches_see_the_same_ones_whatever_draws_the_order() -> None:
    data, own = Drawn(), torch.Generator().manual_seed(5)
    loader = DataLoader(data, batch_size=20, shuffle=True, generator=own)
    lab, before = small_runs.lab(captured(), loader, digits().val), own.get_state()
    seen = []
    for name in ("first", "second"):
        assert lab.trial(name, batches=2).quality > 0.0
        seen.append(data.drawn[:])
        data.drawn.clear()
        assert torch.equal(own.get_state(), before)
    assert len(seen[0]) == 40
    assert seen[0] == seen[1] != sorted(seen[0])


# ---------------------------------------------------------------------- what it tells


class GivesUp(shoal.Method):
    """Makes a step, and says why it does not make a second one."""

    def step(self, lab: Lab) -> bool:
        lab.note(f"this is step {lab.number}")
        if lab.number == 2:
            return lab.done("nothing is worth it")
        lab.linearize(["act"], "identity")
        return True


def test_what_is_noted_where_no_step_is_made_stands_in_the_result(tmp_path: Path) -> None:
    result = run(tmp_path, method=GivesUp, epochs=0)
    assert result.stopped == "nothing is worth it"
    assert "this is step 1" in result.steps[1].notes
    assert result.notes.count("this is step 2") == 1
    assert facts(run(tmp_path, method=GivesUp, epochs=0)) == facts(result)


@pytest.fixture
def lab() -> Lab:
    return small_runs.lab(captured(), digits().train, digits().val)


def test_places_of_both_kinds_are_scored_per_latency_in_one_step(lab: Lab) -> None:
    for kind, names in (("site", small_runs.SITES), ("block", ["conv2"])):
        plain = lab.score("random", kind)
        assert list(plain) == names
        # Each removal saves a millisecond here.
        assert dict(lab.score("random", kind, per_latency=True)) == pytest.approx(dict(plain))


def test_an_optimizer_step_takes_as_many_batches_as_are_accumulated(lab: Lab) -> None:
    assert (lab.batches, lab.steps_of(3), lab.steps_of(0)) == (5, 15, 1)
    lab.recipe = replace(lab.recipe, accumulate=2)
    assert lab.steps_of(3) == 9  # the last of an epoch is of one batch


def test_only_blocks_of_the_base_count_as_dropped(lab: Lab) -> None:
    assert lab.dropped == 0
    lab.drop(["conv2"])
    assert lab.dropped == 1
    base = captured().copy()
    drop_(base, ["conv2"])  # by an earlier search
    assert small_runs.lab(base, digits().train, digits().val).dropped == 0
