"""EGP: the budget rule's known figures, masks that hold, layers that die, NEPENTHE by options."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
import small_runs
from shoal.errors import NameNotFoundError
from shoal.methods.egp import EGP, budgets, relevances, whole
from small_runs import run

LEFT = {"a": 4, "b": 6, "c": 10}
ENTROPIES = {"a": 0.4, "b": 0.8, "c": 0.5}
SIZES = {"a": 0.5, "b": 0.2, "c": 0.1}
IRRELEVANCES = {"a": 0.2, "b": 0.16, "c": 0.05}  # H·mean|w|; their sum T is 0.41


def test_relevance_is_the_sum_of_irrelevances_over_a_layers_own() -> None:
    assert relevances(IRRELEVANCES) == pytest.approx({"a": 2.05, "b": 2.5625, "c": 8.2})
    without = {"a": 0.2, "b": 0.16}  # T = 0.36
    assert relevances(without) == pytest.approx({"a": 1.8, "b": 2.25})


def test_budgets_follow_the_softmax_of_relevance() -> None:
    found = budgets(ENTROPIES, SIZES, LEFT, 0.5)
    assert found == pytest.approx({"a": 0.0212, "b": 0.0354, "c": 9.9434}, abs=1e-4)
    assert sum(found.values()) == pytest.approx(10.0)
    assert whole(found, LEFT, cap=1.0) == {"a": 0, "b": 0, "c": 9}
    assert whole(found, LEFT, cap=0.6) == {"a": 0, "b": 0, "c": 6}


def test_a_layer_with_too_few_weights_loses_all_and_the_rest_is_shared_out_again() -> None:
    left = {**LEFT, "c": 6}
    found = budgets(ENTROPIES, SIZES, left, 0.5)
    assert found == pytest.approx({"a": 0.7787, "b": 1.2213, "c": 6.0}, abs=1e-4)
    assert whole(found, left, cap=1.0) == {"a": 0, "b": 1, "c": 6}


@pytest.mark.parametrize(
    ("entropy", "relevance", "share", "others"),
    [
        (1.0, 17.0, 1 / 17, 1 / 17),
        (0.5, 33.0, 0.999999, 0.0),
        (0.9, 18.7778, 0.290, 0.0444),
    ],
)
def test_nearly_all_goes_to_the_least_irrelevant_of_many_layers(
    entropy: float, relevance: float, share: float, others: float
) -> None:
    """Of 17 layers that are alike but for the first one's entropy."""
    names = [str(number) for number in range(17)]
    left, sizes = dict.fromkeys(names, 10**6), dict.fromkeys(names, 1.0)
    entropies = {**dict.fromkeys(names, 1.0), "0": entropy}
    assert relevances(entropies)["0"] == pytest.approx(relevance, abs=1e-4)
    found = budgets(entropies, sizes, left, 0.001)
    assert found["0"] / sum(found.values()) == pytest.approx(share, abs=5e-4 if others else 1e-6)
    assert found["1"] / sum(found.values()) == pytest.approx(others, abs=5e-5)


@pytest.mark.parametrize(
    ("options", "entropy"),
    [
        ("zeros=off&pooling=all&neurons=mixed", 0.905639),  # EGP
        ("zeros=exclude&pooling=all&neurons=mixed", 0.864787),  # NEPENTHE
        ("zeros=exclude&pooling=all&neurons=all", 0.576525),  # EASIER's paper
        ("zeros=on&pooling=all&neurons=all", 0.540852),  # EASIER's code
    ],
)
def test_the_entropies_of_the_family(options: str, entropy: float) -> None:
    z = torch.tensor([[1.0, -1, 2], [2, -1, -1], [-1, -2, 0], [3, -1, 1]])
    net = shoal.capture(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), z)
    scores = shoal.score(net, [(z, torch.zeros(4).long())], f"entropy?{options}")
    assert list(scores.values()) == pytest.approx([entropy], abs=1e-5)


def test_entropies_of_batches_are_averaged_or_pooled() -> None:
    first, second = torch.tensor([[-1.0], [-2]]), torch.tensor([[1.0], [-1]])
    data = [(z, torch.zeros(2).long()) for z in (first, second)]
    net = shoal.capture(nn.Sequential(nn.ReLU(), nn.Linear(1, 2)), first)
    for pooling, entropy in (("batch", 0.5), ("all", 0.811278)):
        scores = shoal.score(net, data, f"entropy?pooling={pooling}")
        assert list(scores.values()) == pytest.approx([entropy], abs=1e-5)


def layers(net: nn.Module) -> dict[str, float]:
    """The share of zeros in each layer that a rectifier follows."""
    names = ("conv1", "conv2", "conv3", "hidden")
    weights = {name: net.get_parameter(f"{name}.weight") for name in names}
    return {name: float((w == 0).float().mean()) for name, w in weights.items()}


def test_pruned_weights_stay_pruned_through_training(tmp_path: Path) -> None:
    result = run(tmp_path, method="egp", rounds=2, share=0.3, cap=0.6)
    assert [step.operation.split("+")[0] for step in result.steps[1:]] == ["prune", "prune"]
    first = layers(shoal.load(tmp_path, "steps/001"))
    second = layers(shoal.load(tmp_path, "steps/002"))
    assert all(0.0 <= first[name] <= second[name] for name in first)
    assert max(first.values()) > 0.25
    assert sum(second.values()) > sum(first.values())
    assert result.stopped == "all rounds are done"


def test_the_last_training_leaves_pruned_weights_at_zero(tmp_path: Path) -> None:
    run(tmp_path, method="egp", rounds=1, share=0.3, cap=0.6, final_epochs=2)
    before, after = (shoal.load(tmp_path, step=step) for step in (1, 2))
    assert not small_runs.same_weights(before, after)
    assert layers(before) == layers(after)
    assert max(layers(after).values()) > 0.25


def zeros(network: nn.Module) -> dict[str, Tensor]:
    names = ("conv1", "conv2", "conv3", "hidden")
    return {name: network.get_parameter(f"{name}.weight") == 0 for name in names}


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"epochs": 1}, {"epochs": 1, "score_on": "rewound"}]
)
def test_pruned_weights_stay_pruned_where_the_others_are_rewound(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    run(tmp_path, method="egp", rewind=0, rounds=3, share=0.3, cap=0.6, **options)
    steps = [zeros(shoal.load(tmp_path, f"steps/{number:03d}")) for number in (1, 2, 3)]
    counts = [sum(int(now.sum()) for now in step.values()) for step in steps]
    assert 0 < counts[0] < counts[1] < counts[2]
    for before, after in pairwise(steps):
        assert all(bool((after[name] | ~before[name]).all()) for name in before)


def test_a_pruned_network_that_was_merged_is_pruned_further(tmp_path: Path) -> None:
    first = run(tmp_path, method="egp", rounds=4, share=0.8, epochs=2)
    merged = shoal.load(tmp_path)
    pruned = first.model.plan.names("prune")
    assert any(f"{name}.weight" not in dict(merged.named_parameters()) for name in pruned)
    again = run(model=merged, method="egp", rounds=1)
    assert again.steps[1].operation.startswith("prune")


def test_the_layer_before_each_rectifier_is_found() -> None:
    net = small_runs.captured()
    found = {name: net.view.layer_before(net.node_of(name)) for name in small_runs.SITES}
    assert found == {"relu": "conv1", "act": "conv2", "relu_1": "conv3", "last": "hidden"}


def test_a_rectifier_behind_another_one_follows_no_layer() -> None:
    layers = (nn.Linear(4, 4), nn.BatchNorm1d(4), nn.PReLU(4), nn.BatchNorm1d(4), nn.GELU())
    net = shoal.capture(nn.Sequential(*layers).eval(), torch.randn(2, 4))
    assert net.view.layer_before(net.node_of("2")) == "0"
    assert net.view.layer_before(net.node_of("4")) is None


class TwiceCalled(nn.Module):
    """One layer that two rectifiers follow, and one that a third follows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again, self.last = nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        return self.last(self.again(self.again(x).relu()).relu())


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_layer_that_is_called_twice_counts_once(share: float) -> None:
    data = small_runs.digits()
    net = shoal.capture(TwiceCalled(), data.example_inputs(2))
    result = run(model=net, method="egp", rounds=1, share=share, epochs=0)
    weights = [result.model.get_parameter(f"{name}.weight") for name in ("first", "again")]
    pruned, whole = (
        sum(int(n) for n in ns)
        for ns in zip(*((int((w == 0).sum()), w.numel()) for w in weights), strict=True)
    )
    assert whole * share - 2 <= pruned <= whole * share
    spared = run(model=net, method="egp", rounds=1, share=share, epochs=0, protect=("relu_1",))
    assert bool((spared.model.get_parameter("again.weight") != 0).all())


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one, self.two = nn.Linear(64, 20), nn.Linear(20, 20), nn.Linear(20, 20)
        self.last = nn.Linear(20, 10)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).relu()
        return self.last(self.two(self.one(x).relu()).relu())


def tied() -> shoal.Network:
    return shoal.capture(Tied(), small_runs.digits().example_inputs(2))


def test_a_tied_weight_is_pruned_once() -> None:
    result = run(model=tied(), method="egp", rounds=1, share=0.3, epochs=0)
    weights = [result.model.get_parameter(f"{name}.weight") for name in ("first", "one")]
    pruned = sum(int((weight == 0).sum()) for weight in weights)
    whole = sum(weight.numel() for weight in weights)
    assert whole * 0.3 - 2 <= pruned <= whole * 0.3
    assert "two" not in result.model.plan.names("prune")


def test_protecting_one_of_the_layers_of_a_tied_weight_spares_it() -> None:
    last = tied().sites[-1].name
    result = run(model=tied(), method="egp", rounds=1, share=0.3, epochs=0, protect=(last,))
    assert bool((result.model.get_parameter("one.weight") != 0).all())
    assert not bool((result.model.get_parameter("first.weight") != 0).all())


@pytest.mark.parametrize("options", [{"epochs": 1}, {"epochs": 0, "rewind": 0}])
@pytest.mark.parametrize("named", ["one", "two"])
def test_the_zeros_of_a_tied_weight_stay(named: str, options: dict[str, Any]) -> None:
    net = tied().copy()
    with torch.no_grad():
        weight = net.get_parameter("one.weight")
        weight[:, :10] = 0.0
    net.plan.record("prune", (named,))
    data = small_runs.digits()
    lab = small_runs.lab(net, data.train, data.val, **options)
    rewound = tied()
    if "rewind" in options:
        lab.setup.rewind._state = dict(rewound.state_dict())
        lab.setup.rewind.apply_(lab.network)
    else:
        keep = EGP().keeps(lab)
        with torch.no_grad():
            lab.network.get_parameter("one.weight").add_(1.0)
        keep(lab.network)
    after = lab.network.get_parameter("two.weight")
    assert bool((after[:, :10] == 0).all())
    assert bool((after[:, 10:] != 0).all())


def test_a_protected_site_that_does_not_exist_is_named() -> None:
    with pytest.raises(NameNotFoundError, match="lastt"):
        run(method="egp", protect=("lastt",))


def test_protected_layers_keep_their_weights() -> None:
    result = run(method="egp", rounds=1, protect=("relu", "act", "last"), share=0.3)
    zeros = layers(result.model)
    assert zeros["conv3"] > 0.0
    assert zeros["conv1"] == zeros["conv2"] == zeros["hidden"] == 0.0


def test_a_network_that_predicts_one_class_is_reported() -> None:
    result = run(method="egp", rounds=3, share=0.999, recipe={"lr": 1e-6, "precision": "fp32"})
    assert any(note.startswith("collapsed") for step in result.steps for note in step.notes)
    assert "collapsed" in result.stopped
