"""The compiled training step learns what the uncompiled one does, or leaves the work to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_runs
from shoal.errors import DataError
from shoal.network import Network
from shoal.training import FitReport, fit
from shoal.training import compiled as module
from small_runs import digits

RECIPE = {"lr": 0.02, "precision": "fp32"}


def trained(asked: str, **options: Any) -> tuple[Network, FitReport]:
    network = small_runs.captured().copy()
    recipe = {**RECIPE, **options.pop("recipe", {}), "compile_training": asked}
    train = options.pop("train", digits().train)
    return network, fit(network, train, epochs=2, recipe=recipe, **options)


def alike(one: nn.Module, other: nn.Module, tolerance: float) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.allclose(a[k].float(), b[k].float(), atol=tolerance) for k in a)


def inputs_squared(network: nn.Module, values: Mapping[str, Any]) -> Tensor:
    assert set(values) == {"act", "last"}
    return 1e-3 * sum((value.square().mean() for value in values.values()), torch.zeros(()))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Compiles with a backend that runs the graph as it is; gives how many nodes each graph has."""
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(module, "BACKEND", backend)
    return found


@pytest.mark.parametrize("kind", ["plain", "teacher", "penalty", "places", "loss"])
def test_it_learns_what_the_uncompiled_step_does(kind: str, runs: list[int]) -> None:
    options: dict[str, Any] = {
        "plain": {},
        "teacher": {"teacher": small_runs.captured(), "recipe": {"distill": 0.5}},
        "penalty": {"penalty": lambda network, values: 1e-3 * network.fc.weight.square().sum()},
        "places": {"penalty": inputs_squared, "at": ["act", "last"]},
        "loss": {"loss": lambda output, target: nn.functional.cross_entropy(output, target)},
    }[kind]
    off, plain = trained("off", **options)
    on, report = trained("on", **options)
    assert runs
    assert report.notes == ()
    assert alike(on, off, 1e-5)
    assert [e.loss for e in report.epochs] == pytest.approx(
        [e.loss for e in plain.epochs], rel=1e-4
    )
    assert [e.train_hits for e in report.epochs] == [e.train_hits for e in plain.epochs]
    assert [e.penalty is None for e in report.epochs] == [e.penalty is None for e in plain.epochs]


def test_on_a_cpu_auto_is_off_to_the_bit(runs: list[int]) -> None:
    off, _ = trained("off")
    auto, report = trained("auto")
    assert small_runs.same_weights(off, auto)
    assert (runs, report.notes) == ([], ())


def test_a_network_that_cannot_be_compiled_trains_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(module, "BACKEND", broken)
    on, report = trained("on")
    (note,) = report.notes
    assert note.startswith("the network trains uncompiled, as it cannot be compiled: ")
    assert "no compiler here" in note
    assert small_runs.same_weights(on, trained("off")[0])


def test_a_fit_goes_on_compiled_from_its_checkpoint(runs: list[int], tmp_path: Any) -> None:
    whole, _ = trained("on")

    class Stopped(Exception):
        pass

    def stop(report: Any) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        trained("on", checkpoint=tmp_path / "fit.pt", on_epoch=stop)
    again, report = trained("on", checkpoint=tmp_path / "fit.pt")
    assert report.resumed_from == 1
    assert alike(again, whole, 1e-5)


def test_wrong_labels_are_told_by_the_compiled_step_too(runs: list[int]) -> None:
    batches = [(x, y) for x, y in digits().train]
    batches[3] = (batches[3][0], batches[3][1] + 7)
    with pytest.raises(DataError, match="is outside the network's 10 outputs"):
        trained("on", train=batches)


@pytest.mark.long
def test_many_fits_in_one_process_stay_compiled(runs: list[int]) -> None:
    for _ in range(9):  # dynamo keeps 8 versions of one code
        before = len(runs)
        fit(small_runs.captured().copy(), [*digits().train][:2], epochs=1,
            recipe={**RECIPE, "compile_training": "on"})  # fmt: skip
        assert len(runs) > before


def trial(monkeypatch: pytest.MonkeyPatch, compiled_ms: float) -> tuple[bool, list[str]]:
    """Go through an "auto" trial as on a GPU, by a clock of the test's own."""
    from shoal.data.batch import split_batch
    from shoal.options import Recipe
    from shoal.training.objective import Hooks, Objective

    now = 0.0
    monkeypatch.setattr(module.Compiling, "_now", lambda self: now)
    objective = Objective(small_runs.captured().copy(), Recipe(), None, None, Hooks())
    compiling = module.Compiling("auto", objective, 100_000, torch.device("cuda"))
    batch = split_batch(next(iter(digits().train)))
    for _ in range(60):
        compiling.prepare(batch, check=False)
        now += 1e-3 * (10.0 if objective.compute == objective.computed else compiled_ms)
    return objective.compute != objective.computed, compiling.notes


@pytest.mark.parametrize(("compiled_ms", "stays"), [(7.0, True), (10.1, False)])
def test_auto_keeps_what_is_faster_and_says_so(
    runs: list[int], monkeypatch: pytest.MonkeyPatch, compiled_ms: float, stays: bool
) -> None:
    kept, (note,) = trial(monkeypatch, compiled_ms)
    assert kept == stays
    assert f"10.00 ms uncompiled and {compiled_ms:.2f} ms compiled" in note
