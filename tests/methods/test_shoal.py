"""The search over all moves: what it may do, what it chooses, when it ends, how it goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
import small_runs
from changed import changed
from shoal.errors import ConfigError, TrainingError
from shoal.importance import score
from shoal.measure import measure_latency
from shoal.merge.cut import LatencyCosts
from shoal.merge.merge import merge_
from shoal.methods.shoal import Shoal
from shoal.methods.shoal.choosing import best_step
from shoal.models import cifar_resnet20
from shoal.models.small import CifarResNet
from shoal.network import Network
from shoal.search import coach
from shoal.search.coach import FirstBatches
from shoal.search.moves import Move, find_moves, saved_ms
from shoal.search.records import Result
from shoal.search.settings import Settings
from shoal.search.setup import Listener
from shoal.surgery import drop_, linearize_
from shoal.training import evaluate, recipes
from small_runs import FakeGauge


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(64, 3, 8, 8, generator=generator), torch.arange(64) % 4) for _ in range(count)
    ]


TRAIN, VAL = batches(4, 1), batches(1, 2)
PRICES = {"linearize": 0.1, "collapse": 1.0, "drop": 2.0}  # milliseconds
WHOLE_MS = 40.0
Savings = tuple[float, dict[str, float]]


def table(network: Network, moves: Sequence[Move]) -> Savings:
    return WHOLE_MS, {move.title: PRICES[move.kind] for move in moves}


@pytest.fixture(scope="module")
def model() -> Network:
    torch.manual_seed(0)
    return shoal.capture(cifar_resnet20(num_classes=4, width=4).eval(), TRAIN[0][0])


def run(model: nn.Module, **options: Any) -> Result:
    given = {"epochs": 0, "max_drop": 100.0, "samples": 256, "remove": 1, **options}
    saved, speedup = given.pop("saved", table), given.pop("speedup", 1.0)
    given.setdefault("gauge", FakeGauge(VAL, saved=saved, speedup=speedup))
    return shoal.compress(model, TRAIN, VAL, method="shoal", **given)


def test_moves_are_all_sites_stretches_and_removable_blocks(model: Network) -> None:
    kinds = [move.kind for move in find_moves(model)]
    assert (kinds.count("linearize"), kinds.count("collapse"), kinds.count("drop")) == (19, 9, 7)
    assert {m.kind for m in find_moves(model, ["drop"])} == {"drop"}


def test_costs_are_what_the_other_criteria_say_and_the_ratio_decides(model: Network) -> None:
    """No removal adds to an accuracy of 100 %, and the block of the least lesion goes."""
    with torch.no_grad():
        right = [(images, model(images).argmax(1)) for images, _ in TRAIN]
    given = {"epochs": 0, "max_drop": 0.0, "samples": None, "moves": ["drop"]}
    given |= {"criterion": "accuracy", "per_step": 7, "step_saving": 1.0}  # all 7 meet all samples
    given |= {"gauge": FakeGauge(VAL, saved=table)}
    step = shoal.compress(model, right, VAL, method="shoal", **given).steps[1]
    lesion = score(model, right, "lesion", metric="accuracy")
    assert step.operation == "drop"
    assert lesion[step.names[0]] == min(lesion.values())
    for title, found in step.scores.items():  # not below: less than its own error is not known
        assert found * PRICES["drop"] >= lesion[title.removeprefix("drop ")] - 1e-9


@pytest.mark.long
def test_each_kind_of_move_does_what_its_operation_does(model: Network) -> None:
    for kind, operation in (("linearize", "linearize"), ("collapse", "collapse"), ("drop", "drop")):
        result = run(model, moves=[kind])
        assert [op.kind for op in result.plan.operations] == [operation]
        assert result.removed == 1


@pytest.mark.long
def test_among_equal_costs_the_larger_saving_goes_first() -> None:
    torch.manual_seed(0)
    net = cifar_resnet20(num_classes=4, width=4).eval()
    for name, bn in net.named_modules():  # branches that are zero: dropping them costs nothing
        if name.endswith("bn2"):
            nn.init.zeros_(bn.weight)
            nn.init.zeros_(bn.bias)
    captured = shoal.capture(net, TRAIN[0][0])
    first = run(captured).steps[1]
    assert first.operation == "drop"

    def dear(network: Network, moves: Sequence[Move]) -> Savings:
        return 40.0, {m.title: {"collapse": 9.0, "drop": 0.01}.get(m.kind, 0.0) for m in moves}

    step = run(captured, saved=dear).steps[1]
    assert set(step.scores) == {m.title for m in find_moves(captured, ["collapse", "drop"])}


def test_moves_of_one_step_do_not_touch_each_other(model: Network) -> None:
    step = run(model, remove=6, per_step=6, step_saving=1.0).steps[1]
    assert len(step.names) == len(set(step.names)) == 6


@pytest.mark.long
def test_a_kind_that_saves_a_trifle_waits_while_another_saves_a_steps_share() -> None:
    net = shoal.capture(cifar_resnet20(num_classes=4, width=4).eval(), TRAIN[0][0])
    found = find_moves(net)
    saved = {move.title: PRICES[move.kind] for move in found}
    scores = {m.title: {"linearize": 0.1, "collapse": 1.0, "drop": 3.0}[m.kind] for m in found}
    for enough, kind, count in ((4.0, "collapse", 4), (0.4, "linearize", 4), (0.3, "linearize", 3)):
        chosen = best_step(found, scores, saved, 4, enough)
        assert ({move.kind for move in chosen}, len(chosen)) == ({kind}, count), enough


@pytest.mark.long
@pytest.mark.parametrize(("moves", "expected"), [("drop", 2), ("collapse", 4), ("linearize", 5)])
def test_a_step_ends_when_it_saves_enough(model: Network, moves: str, expected: int) -> None:
    """A tenth of 40 ms is two drops of 2 ms or four collapses of 1 ms; more than 5 never go."""
    step = run(model, remove=None, moves=[moves], step_saving=0.1, per_step=5, max_drop=0.0).steps[
        1
    ]
    assert len(step.names) == expected


@pytest.mark.long
def test_the_last_step_saves_what_is_missing_to_the_target(model: Network) -> None:
    options = {"moves": ["collapse"], "step_saving": 0.1, "target_latency": 0.7}
    options |= {"speedup": 1.0 / 0.73}
    result = run(model, remove=None, patience=1, **options)
    # 0.7 / 0.73 leaves 4 % of 40 ms to save.
    assert [len(step.names) for step in result.steps[1:3]] == [4, 2]


def test_nothing_that_saves_no_time_is_done(model: Network) -> None:
    def nothing(network: Network, moves: Sequence[Move]) -> Savings:
        return 40.0, {move.title: 0.0 for move in moves}

    result = run(model, remove=None, saved=nothing)
    assert len(result.steps) == 1
    assert "save time" in result.stopped


def test_it_ends_at_the_target(model: Network) -> None:
    result = run(model, remove=None, moves=["drop"], target_macs=0.7)
    shares = [step.metrics.macs / result.steps[0].metrics.macs for step in result.steps]
    assert shares[-1] <= 0.7 < shares[-2]
    assert "0.7 was the target" in result.stopped
    with pytest.raises(ConfigError, match="target_latency is"):
        run(model, target_latency=1.5)


@pytest.mark.long
def test_an_interrupted_step_keeps_what_it_measured(model: Network, tmp_path: Path) -> None:
    """Another measurement would choose another move; the step goes on with the first."""

    class Stop(Listener):
        def stage(self, step: int, text: str) -> None:
            if (step, text) == (1, "evaluate"):
                raise KeyboardInterrupt

    options = {"out": tmp_path / "run", "epochs": 1, "recipe": {"precision": "fp32", "lr": 0.01}}
    with pytest.raises(KeyboardInterrupt):
        run(model, listener=Stop(), **options)
    kept = json.loads((tmp_path / "run" / "measured-001.json").read_text())
    assert {"saved_ms", "paddings", "no move: loss of 256"} <= set(kept)
    assert sum(name.endswith(": loss of 256") for name in kept) == 1 + 3 * 3  # tries of each kind

    def trained(*given: Any, **options: Any) -> None:
        pytest.fail("tried again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.search.coach.FirstBatches", trained)
        result = run(model, **options, saved=lambda *given: pytest.fail("measured again"))
    assert len(result.steps) == 2
    assert not (tmp_path / "run" / "measured-001.json").exists()


@pytest.mark.long
def test_saving_is_measured_once_for_moves_that_are_alike(
    model: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    real = measure_latency

    def count(models: Mapping[str, Any], inputs: Any, **options: Any) -> Any:
        counted.append(len(models))
        return real(models, inputs, warmup=0, repeats=6, min_seconds=0.0)

    monkeypatch.setattr("shoal.measure.deployment.measure_latency", count)
    found = find_moves(model, ["drop", "collapse"])
    whole_ms, saved, _ = saved_ms(model, found, (torch.randn(2, 3, 8, 8),))
    assert set(saved) == {move.title for move in found}
    assert all(0.0 <= value < whole_ms for value in saved.values())
    # The whole; drops in three stages; collapses in three stages, and of two strided blocks.
    assert counted == [1 + 3 + 5]
    assert saved["drop layer1.0"] == saved["drop layer1.2"]


@pytest.mark.long
def test_what_folding_takes_away_saves_nothing(
    model: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two rectifiers a dropped block leaves nothing, and the second one does nothing."""
    real = measure_latency

    def short(models: Mapping[str, Any], inputs: Any, **options: Any) -> Any:
        return real(models, inputs, warmup=0, repeats=3, min_seconds=0.0)

    monkeypatch.setattr("shoal.measure.deployment.measure_latency", short)
    network = changed(shoal.drop_, model.copy(), "layer3.1")
    found = find_moves(network, ["linearize"])
    assert "linearize layer3.1.relu_1" in {move.title for move in found}
    _, saved, _ = saved_ms(network, found, (torch.randn(2, 3, 8, 8),))
    assert saved["linearize layer3.1.relu_1"] == 0.0
    assert set(saved) == {move.title for move in found}


@pytest.mark.long
def test_the_network_is_left_as_it_is(model: Network) -> None:
    before = evaluate(model, VAL).loss
    plan = list(model.plan.operations)
    run(model, remove=3)
    assert evaluate(model, VAL).loss == before
    assert model.plan.operations == plan


def test_wrong_options_are_told(model: Network) -> None:
    with pytest.raises(ConfigError, match="one of loss, accuracy"):
        run(model, criterion="entropy")
    with pytest.raises(ConfigError, match="one of linearize, collapse, drop"):
        run(model, moves=["colapse"])


@pytest.mark.long
def test_everything_is_decided_in_the_runtime_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    model = shoal.capture(CifarResNet(8, num_classes=4, width=4).eval(), TRAIN[0][0])
    asked: list[str] = []
    real = measure_latency

    def short(models: Mapping[str, Any], inputs: Any, runtime: Any, **options: Any) -> Any:
        asked.append(runtime if isinstance(runtime, str) else runtime.name)
        return real(models, inputs, runtime=runtime, warmup=0, repeats=3, min_seconds=0.0)

    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    monkeypatch.setattr("shoal.measure.deployment.measure_latency", short)
    monkeypatch.setattr("shoal.merge.cut.measure_latency", short)
    network = changed(linearize_, model.copy(), "layer1.0.relu", how="identity")
    found = find_moves(network, ["drop"])[:2]
    saved_ms(network, found, (torch.randn(2, 3, 8, 8),), runtime="onnxruntime")
    merge_(network, policy="measured", runtime="onnxruntime")
    assert len(asked) > 1
    assert set(asked) == {"onnxruntime"}
    monkeypatch.setattr(LatencyCosts, "map_ms", lambda self, found, node: found.weight.numel())
    assert run(model, runtime="onnxruntime").removed == 1


def test_it_learns_from_the_dense_network_unless_told_otherwise() -> None:
    assert Settings.of("shoal").recipe == recipes["distill"]
    assert Settings.of("shoal", lr=0.1).recipe == replace(recipes["distill"], lr=0.1)
    assert Settings.of("shoal", "finetune").recipe == recipes["finetune"]
    assert Settings.of("easier").recipe == recipes["finetune"]


# ---------------------------------------------------------------------- rehearsal

FP32 = {"precision": "fp32", "lr": 0.01}


@pytest.mark.long
def test_rehearsed_moves_are_the_best_of_each_kind_and_one_of_them_is_made(
    model: Network, tmp_path: Path
) -> None:
    given = {"epochs": 1, "recipe": FP32, "samples": 64}  # so few that none leaves the race
    step = run(model, **given, tries=2, out=tmp_path / "run").steps[1]
    kinds = Counter(title.partition(" ")[0] for title in step.scores)
    assert kinds == {"linearize": 2, "collapse": 2, "drop": 2}
    of_step = [t for t in step.scores if t.startswith(step.operation)]
    assert f"{step.operation} {step.names[0]}" == min(of_step, key=lambda t: step.scores[t])
    assert step.operation != "linearize"  # two of them save a tenth of what a step should
    untrained = run(model, **given, tries=0).steps[1].scores
    for kind in kinds:
        of_kind = [title for title in untrained if title.startswith(kind)]
        best = sorted(of_kind, key=lambda title: untrained[title])[:2]
        assert set(best) == {title for title in step.scores if title.startswith(kind)}


Trained = Callable[[Network], object]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trained], None]:
    """Let a function of the test's own train in trials."""

    def by(train: Trained) -> None:
        def fit(network: Network, data: object, **options: object) -> SimpleNamespace:
            train(network)
            return SimpleNamespace(notes=(), epochs=(), resumed_from=None)

        monkeypatch.setattr(coach, "fit", fit)

    return by


def test_a_rehearsal_compares_with_the_network_trained_as_long(
    model: Network, training: Callable[[Trained], None]
) -> None:
    """A move that does nothing costs nothing, however much the training gains."""

    def train(network: Network) -> None:
        with torch.no_grad():
            network.get_parameter("linear.bias").add_(torch.arange(4.0))

    training(train)
    lab = small_runs.lab(model, TRAIN, VAL)
    against, nothing = lab.trial("as it is", batches=1), lab.trial("no change", batches=1)
    assert nothing.cost_above(against) == (0.0, 0.0)
    training(lambda network: None)
    lab = small_runs.lab(model, TRAIN, VAL)
    lesion = score(model, TRAIN, "lesion")
    for move in find_moves(model, ["drop"])[:2]:
        made = lab.trial(move.title, lambda net, name=move.name: drop_(net, name), batches=1)
        cost, error = made.cost_above(lab.trial("as it is", batches=1))
        assert cost == pytest.approx(lesion[move.name], abs=1e-5)
        assert error > 0.0


@pytest.mark.long
def test_a_move_that_breaks_training_is_passed_over(
    model: Network, training: Callable[[Trained], None]
) -> None:
    wanted = {"epochs": 1, "tries": 1, "moves": ["drop", "collapse"], "recipe": FP32}
    whole = set(run(model, **wanted).steps[1].scores)
    assert len(whole) == 2
    calls: list[Network] = []

    def train(network: Network) -> None:
        calls.append(network)
        if len(calls) in broken:  # the first one is of the network as it is
            raise TrainingError("the loss is not finite")

    training(train)
    broken = {2}
    lab = small_runs.lab(model, TRAIN, VAL)
    assert Shoal(Shoal.Options(tries=1, moves=("drop", "collapse"), samples=64)).step(lab)
    assert lab.scores is not None
    assert len(lab.scores) == 1
    assert set(lab.scores) < whole
    calls.clear()
    broken = {2, 3}
    lab = small_runs.lab(model, TRAIN, VAL)
    with pytest.raises(TrainingError, match="not finite"):
        Shoal(Shoal.Options(tries=1, moves=("drop", "collapse"), samples=64)).step(lab)


def test_no_more_batches_are_rehearsed_on_than_there_are() -> None:
    assert [len(FirstBatches(TRAIN, count)) for count in (3, 9)] == [3, 4]
    assert [len(list(FirstBatches(TRAIN, count))) for count in (3, 9)] == [3, 4]


def test_a_users_own_training_is_not_rehearsed(model: Network) -> None:
    trained: list[Network] = []
    run(model, epochs=1, fit=trained.append, tries=2)
    assert len(trained) == 1
