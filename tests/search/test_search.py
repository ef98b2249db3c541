from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import small_runs
from shoal.data.loader import ImageLoader
from shoal.errors import ConfigError, DataError, NameNotFoundError, RunError
from shoal.network import Network
from shoal.options import Recipe
from shoal.report.run_tables import comparison_table
from shoal.search import coach
from shoal.search.records import Result, Step, lineage
from shoal.search.setup import Listener
from shoal.training import fit
from small_runs import SITES, FakeGauge, digits, facts, removals, result_of, run, same_weights


@pytest.fixture(scope="module")
def whole() -> Result:
    """A search that goes on until nothing is left."""
    return run()


Scripted = Callable[..., Result]


@pytest.fixture
def scripted() -> Scripted:
    """A search without training whose accuracies are given, one for each number of removals."""

    def search(accuracies: list[float], **options: Any) -> Result:
        def judge(network: Network) -> float:
            return accuracies[sum(site.linearized is not None for site in network.sites)]

        gauge = FakeGauge(digits().val, quality=judge)
        given = {"fit": lambda network: None, "how": "identity", "gauge": gauge, **options}
        return run(**given)

    return search


# ---------------------------------------------------------------------- what it is asked


@pytest.mark.parametrize(
    ("method", "option", "others"),
    [
        ("easier", {"keep_first": True}, "'layer_pruning'"),
        ("easier", {"tries": 2}, "'shoal'"),
        ("layer_pruning", {"how": "identity"}, ".*'easier' or .*'shoal'"),
        ("layer_pruning", {"moves": ["drop"]}, "'shoal'"),
        ("shoal", {"per_latency": True}, ".*'easier' or .*'layer_pruning'"),
        ("shoal", {"keep_per_stage": 1}, "'layer_pruning'"),
    ],
)
def test_an_option_of_another_method_is_refused(
    method: str, option: dict[str, Any], others: str
) -> None:
    name = next(iter(option))
    with pytest.raises(ConfigError, match=f"'{method}' has no option {name}.* choose {others}"):
        run(method=method, **option)


# ---------------------------------------------------------------------- where it ends


def test_the_result_is_the_last_step_within_the_drop(scripted: Scripted) -> None:
    result = scripted([90.0, 89.5, 89.0, 88.9, 90.0], max_drop=1.0)
    assert [step.within for step in result.steps] == [True, True, True, False]
    assert result.final == result.steps[2].metrics
    assert result.removed == 2
    assert result.plan.names("linearize") == [n for names in removals(result)[:2] for n in names]
    assert "1.10 points below dense, at most 1 allowed" in result.stopped


def test_a_drop_of_exactly_the_limit_is_within_it(scripted: Scripted) -> None:
    assert scripted([90.1, 89.1, 0, 0, 0], max_drop=1.0).removed == 1


def test_a_gain_in_accuracy_is_no_drop(scripted: Scripted) -> None:
    assert scripted([80.0, 85.0, 90.0, 85.0, 80.0], max_drop=0.0).removed == 4


def test_patience_looks_past_a_bad_step(scripted: Scripted) -> None:
    accuracies = [90.0, 80.0, 90.0, 80.0, 80.0]
    assert scripted(accuracies, max_drop=1.0).removed == 0
    patient = scripted(accuracies, max_drop=1.0, patience=1)
    assert len(patient.steps) == 5
    assert patient.removed == 2
    assert patient.final.top1_val == 90.0


def test_bad_steps_in_a_row_use_up_patience(scripted: Scripted) -> None:
    result = scripted([90.0, 80.0, 80.0, 90.0, 90.0], max_drop=1.0, patience=1)
    assert len(result.steps) == 3
    assert result.removed == 0


@pytest.mark.parametrize(("per_step", "steps"), [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_it_stops_when_nothing_is_left(scripted: Scripted, per_step: int, steps: int) -> None:
    result = scripted([90.0] * 5, per_step=per_step)
    assert len(result.steps) == 1 + steps
    assert result.removed == result.total == 4
    assert result.stopped == "nothing is left to remove"
    assert sorted(n for names in removals(result) for n in names) == sorted(SITES)


@pytest.mark.parametrize(("remove", "per_step", "sizes"), [(2, 1, [1, 1]), (3, 2, [2, 1])])
def test_remove_stops_at_the_number_asked_for(
    scripted: Scripted, remove: int, per_step: int, sizes: list[int]
) -> None:
    result = scripted([90.0] * 5, remove=remove, per_step=per_step)
    assert [len(names) for names in removals(result)] == sizes
    assert result.removed == remove
    assert result.stopped == f"removed {remove}, as asked"


def test_the_listener_hears_how_many_steps_there_can_be(scripted: Scripted) -> None:
    heard: list[int] = []

    class Counter(Listener):
        def plan(self, steps: int) -> None:
            heard.append(steps)

    scripted([90.0] * 5, per_step=3, listener=Counter())
    scripted([90.0] * 5, remove=3, listener=Counter())
    assert heard == [2, 3]


# ---------------------------------------------------------------------- what it works on


def test_a_whole_search_removes_every_site_once(whole: Result) -> None:
    assert sorted(n for names in removals(whole) for n in names) == sorted(SITES)
    assert [step.step for step in whole.steps] == [0, 1, 2, 3, 4]
    assert whole.dense == whole.steps[0].metrics
    assert not any(isinstance(m, nn.ReLU | nn.LeakyReLU) for m in whole.model.modules())
    assert not whole.model.training


def test_test_data_take_no_part_in_a_choice(whole: Result) -> None:
    data = digits()
    for test in (small_runs.relabelled(data.test, 3), None):
        other = run(test=test)
        assert removals(other) == removals(whole)
        assert [s.metrics.top1_val for s in other.steps] == [
            s.metrics.top1_val for s in whole.steps
        ]
        assert same_weights(other.model, whole.model)
    assert all(step.metrics.top1_test is None for step in other.steps)


def test_the_same_seed_gives_the_same_result(whole: Result) -> None:
    again = run()
    assert facts(again) == facts(whole)
    assert same_weights(again.model, whole.model)


def test_the_users_model_is_left_as_it_is() -> None:
    model = small_runs.trained().train()
    model.bn1.eval()
    before = copy.deepcopy(model)
    flags = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    run(model=model, remove=1, dense_epochs=1)
    assert same_weights(model, before)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_custom_fit_is_called_after_each_removal() -> None:
    calls: list[int] = []

    def fit(network: Network) -> None:
        calls.append(sum(site.linearized is not None for site in network.sites))
        assert isinstance(network, nn.Module)

    run(fit=fit, remove=2, dense_epochs=1)
    assert calls == [0, 1, 2]


def test_distillation_learns_from_the_dense_network() -> None:
    recipe = {"lr": 0.02, "precision": "fp32", "distill": 0.5}
    taught = run(remove=1, recipe=recipe)
    assert taught.removed == 1
    assert not same_weights(taught.model, run(remove=1).model)


def test_every_epoch_of_a_run_has_its_own_order_and_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loader draws by the epoch's number alone: steps that began at 0 would repeat it."""
    told: list[int] = []
    monkeypatch.setattr(ImageLoader, "set_epoch", lambda self, epoch: told.append(epoch))
    run(dense_epochs=2, epochs=1, remove=3)
    assert told == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------------- what goes wrong


class _Poison(Listener):
    """Makes the training data NaN from the fine-tuning of a step on."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.active = False
        self.said: list[str] = []

    def stage(self, step: int, text: str) -> None:
        self.active = step >= self.at and text == "fine-tune"

    def note(self, text: str) -> None:
        self.said.append(text)

    def loader(self) -> Any:
        poison, batches = self, list(digits().train)

        class Batches:
            def __len__(self) -> int:
                return len(batches)

            def __iter__(self) -> Iterator[Any]:
                for x, y in batches:
                    yield (x * float("nan") if poison.active else x), y

        return Batches()


def test_a_loss_that_is_not_finite_ends_the_search_with_the_best_so_far() -> None:
    poison = _Poison(at=2)
    result = run(train=poison.loader(), listener=poison)
    assert result.removed == 1
    assert len(result.steps) == 2
    assert result.stopped.startswith("step 2 failed: ")
    assert result.stopped in result.notes
    assert poison.said == [result.stopped]
    assert all(p.isfinite().all() for p in result.model.parameters())


def test_a_layer_that_dies_ends_the_search_and_is_named() -> None:
    def fit(network: Network) -> None:
        with torch.no_grad():
            network.get_parameter("bn1.bias").fill_(-1e3)

    result = run(fit=fit)
    assert len(result.steps) == 2
    assert "layer 'relu' died" in result.stopped


def test_a_network_without_rectifiers_has_nothing_to_remove() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for method, words in (
        ("easier", "no rectifier to linearize: choose method"),
        ("layer_pruning", "no residual block: choose a method"),
        ("shoal", "no rectifier to linearize, no stretch to collapse, no block to drop"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(model=linear, method=method)


def test_what_is_of_another_kind_is_told_in_one_line() -> None:
    for given, error, words in (
        ({"val": None}, DataError, "validation data are a NoneType"),
        ({"train": iter([])}, DataError, "read again and again"),
        ({"test": iter([])}, DataError, "the test data are a list_iterator: give batches that"),
        ({"model": "shoal:digits_resnet"}, ConfigError, "load_model builds from a name"),
        ({"fit": 3}, ConfigError, "fit is a int"),
        ({"max_drop": "1"}, ConfigError, "max_drop is '1'"),
        ({"final_lr": 0.1}, ConfigError, "without final_epochs"),
        ({"lr": -0.1}, ConfigError, "lr is -0.1: give a number, above 0"),
        ({"criterion": "entropy?zero='on'"}, ConfigError, "did you mean 'zeros'"),
    ):
        with pytest.raises(error, match=re.escape(words)):
            run(**given)  # type: ignore[arg-type]


def test_a_users_training_that_breaks_the_weights_ends_the_search() -> None:
    def broken(network: Network) -> None:
        with torch.no_grad():
            network.get_parameter("fc.weight").fill_(float("nan"))

    result = run(fit=broken)
    assert len(result.steps) == 1
    assert "after your own training the model's parameter 'fc.weight' holds NaN" in result.stopped


def test_a_result_prints_as_one_line(whole: Result) -> None:
    assert "\n" not in repr(whole)
    assert "4 of 4 rectifiers removed" in repr(whole)


def test_wrong_options_are_told_before_anything_is_done() -> None:
    with pytest.raises(ConfigError, match=r"max_drop is -1\.0: give a number of points, 0 or more"):
        run(max_drop=-1)
    with pytest.raises(NameNotFoundError, match="unknown option 'per_stp': did you mean 'per_step"):
        run(per_stp=2)
    with pytest.raises(NameNotFoundError, match="unknown method 'esier': did you mean 'easier'"):
        run(method="esier")
    with pytest.raises(NameNotFoundError, match="unknown criterion 'entopy': did you mean 'entrop"):
        run(criterion="entopy")
    with pytest.raises(ConfigError, match="how is 'lines': give one of line, identity"):
        run(how="lines")
    with pytest.raises(DataError, match="the validation data are empty"):
        run(val=[])
    images = TensorDataset(*map(torch.cat, zip(*digits().val, strict=True)))
    half = DataLoader(images, batch_size=8, sampler=DistributedSampler(images, 2, rank=0))
    for part in ("val", "test"):
        with pytest.raises(DataError, match="DistributedSampler: give a loader of all samples"):
            run(**{part: half})
    with pytest.raises(DataError, match="a batch of 1 sample"):
        run(model=small_runs.build(), train=[(x[:1], y[:1]) for x, y in digits().train])
    with pytest.raises(ConfigError, match="there is no device 'cuda"):
        run(device="cuda") if not torch.cuda.is_available() else pytest.skip("there is a GPU")


def test_a_step_spells_itself_as_flat_values(whole: Result) -> None:
    step = whole.steps[1]
    flat = step.to_dict()
    assert {"step", "operation", "names", "scores", "top1_val", "latency_ms"} <= set(flat)
    assert Step.from_dict(flat) == step
    assert step.latency_ratio_low <= step.latency_ratio <= step.latency_ratio_high


# ---------------------------------------------------------------------- the last training


@pytest.mark.parametrize(("after", "taken"), [(89.8, True), (89.5, True), (89.4, False)])
def test_the_result_is_trained_once_more_and_taken_if_it_is_not_worse(
    after: float, taken: bool
) -> None:
    fits: list[int] = []

    def fit(network: Network) -> None:
        fits.append(sum(site.linearized is not None for site in network.sites))

    def judge(network: Network) -> float:
        gone = sum(site.linearized is not None for site in network.sites)
        again = fits[-2:] == [2, 1] and gone == 1
        return after if again else [90.0, 89.5, 70.0][gone]

    gauge = FakeGauge(digits().val, quality=judge)
    result = run(fit=fit, how="identity", max_drop=1.0, final_epochs=3, gauge=gauge)
    assert fits == [1, 2, 1]  # the one too many does not matter: the result is trained
    last = result.steps[-1]
    assert (last.operation, last.names, last.epochs) == ("fine-tune", (), 3)
    assert (last.top1_val_before, last.within) == (89.5, taken)
    assert last.ended == result.stopped
    assert "20.00 points below dense" in result.stopped
    assert result.final == result.steps[-1 if taken else 1].metrics
    assert result.removed == 1
    assert [name for step in lineage(result.steps) for name in step.names] == list(
        result.steps[1].names
    )


def test_nothing_is_trained_once_more_where_nothing_went(scripted: Scripted) -> None:
    result = scripted([90.0, 10.0, 10.0, 10.0, 10.0], max_drop=1.0, final_epochs=2)
    assert [step.operation for step in result.steps] == ["dense", "linearize"]


def test_the_last_training_has_its_own_rate_and_learns_from_dense() -> None:
    seen: list[dict[str, Any]] = []
    real = coach.fit

    def fit(network: Network, train: object, **options: Any) -> object:
        seen.append(options)
        return real(network, train, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coach, "fit", fit)
        recipe = {"lr": 0.02, "precision": "fp32", "distill": 0.5}
        run(remove=1, final_epochs=2, final_lr=0.003, recipe=recipe)
    assert [options["recipe"].lr for options in seen] == [0.02, 0.003]
    assert [options["epochs"] for options in seen] == [1, 2]
    assert [options["first_epoch"] for options in seen] == [0, 1]
    assert all(options["teacher"] is not None for options in seen)


def test_the_last_training_may_have_a_recipe_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def spying(network: Network, data: Any, **options: Any) -> Any:
        seen.append(options["recipe"])
        return fit(network, data, **options)

    monkeypatch.setattr(coach, "fit", spying)
    recipe = {"lr": 0.02, "precision": "fp32", "channels_last": False}
    run(remove=1, final_epochs=2, final_recipe="patient", recipe=recipe)
    first, last = seen
    assert (first.mix, first.distill) == (0.0, 0.0)
    assert (last.mix, last.distill, last.lr) == (1.0, 0.95, 0.02)
    assert (last.precision, last.channels_last) == ("fp32", False)


@pytest.mark.parametrize("options", [{"final_epochs": -1}, {"final_lr": 0.0}])
def test_a_last_training_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        run(**options)


def test_at_a_budget_every_training_is_shorter_and_the_result_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options: Any = {"method": "easier", "remove": 1, "max_drop": 100.0, "dense_epochs": 4}
    result = run(out, epochs=10, budget=0.2, **options)
    assert [step.epochs for step in result.steps] == [1, 2]
    assert result_of(out)["budget"] == result.budget == 0.2
    assert yaml.safe_load((out / "config.yaml").read_text())["epochs"] == 10  # as asked for
    notes = comparison_table(result).notes
    assert any(note.startswith("budget 0.2: ") for note in notes)
    with pytest.raises(RunError, match=r"budget was 0\.2 and is 0\.3"):
        run(out, epochs=10, budget=0.3, **options)
    assert run(None, epochs=0, **options | {"dense_epochs": 0}).budget == 1.0
