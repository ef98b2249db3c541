from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.errors import ConfigError, NameNotFoundError
from shoal.models import cifar_resnet20
from shoal.network import Network
from shoal.search.records import Result
from shoal.search.setup import Listener
from shoal.training import EpochReport
from small_runs import FakeGauge

FAST = {"recipe": {"precision": "fp32", "lr": 0.01}, "seed": 0}


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(8, 3, 8, 8, generator=generator), torch.arange(8) % 4) for _ in range(count)
    ]


TRAIN, VAL = batches(2, 1), batches(2, 2)


@pytest.fixture(scope="module")
def model() -> Network:
    torch.manual_seed(0)
    # Captured once: every search copies it.
    return shoal.capture(cifar_resnet20(num_classes=4, width=4).eval(), TRAIN[0][0])


def compress(model: nn.Module, **options: Any) -> Result:
    given = {"epochs": 0, "max_drop": 100.0, "criterion": "last", **FAST, **options}
    given = {"method": "layer_pruning", "gauge": FakeGauge(VAL), **given}
    return shoal.compress(model, TRAIN, VAL, **given)


def dropped(result: Result) -> list[tuple[str, ...]]:
    return [step.names for step in result.steps[1:]]


LAST = ["layer3.2", "layer3.1", "layer2.2", "layer2.1", "layer1.2", "layer1.1", "layer1.0"]


@pytest.mark.long
def test_all_blocks_go_one_by_one(model: Network) -> None:
    result = compress(model)
    assert dropped(result) == [(name,) for name in LAST]
    assert result.removed == result.total == 7
    assert result.stopped == "nothing is left to remove"
    macs = [step.metrics.macs for step in result.steps]
    assert macs == sorted(macs, reverse=True)
    assert len(set(macs)) == len(macs)
    assert {step.operation for step in result.steps[1:]} == {"drop"}
    assert result.plan.names("drop") == LAST


def test_one_shot_drops_all_at_once(model: Network) -> None:
    result = compress(model, per_step=3, remove=3)
    assert dropped(result) == [tuple(LAST[:3])]
    assert result.removed == 3
    assert set(result.steps[1].scores) == set(LAST)


def test_the_last_step_is_shorter(model: Network) -> None:
    assert dropped(compress(model, per_step=2, remove=3)) == [tuple(LAST[:2]), (LAST[2],)]


def test_floors_of_published_code(model: Network) -> None:
    result = compress(model, keep_first=True, keep_per_stage=2)
    # Of three blocks in each stage two stay, and the first one always.
    assert sorted(name for names in dropped(result) for name in names) == [
        "layer1.2", "layer2.2", "layer3.2",
    ]  # fmt: skip
    at_once = compress(model, per_step=7, keep_per_stage=2)
    assert dropped(at_once) == [("layer3.2", "layer2.2", "layer1.2")]
    first = compress(model, keep_first=True)
    assert "layer1.0" not in [name for names in dropped(first) for name in names]
    assert first.total == 6


def test_scores_decide(model: Network) -> None:
    scores = shoal.score(model, TRAIN, "kl")
    result = compress(model, criterion="kl", remove=1)
    assert dropped(result) == [(min(scores, key=scores.__getitem__),)]
    assert result.steps[1].scores == pytest.approx(dict(scores))


def test_the_criterion_is_cka_unless_another_is_named(model: Network) -> None:
    options = {"epochs": 0, "max_drop": 100.0, "remove": 1, "gauge": FakeGauge(VAL), **FAST}
    result = shoal.compress(model, TRAIN, VAL, method="layer_pruning", **options)
    scores = shoal.score(model, TRAIN, "cka")
    assert result.steps[1].scores == pytest.approx(dict(scores))


@pytest.mark.long
def test_random_order_follows_from_the_seed(model: Network) -> None:
    orders = [
        dropped(compress(model, criterion="random", seed=seed, remove=3)) for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_importance_per_latency_saved(model: Network) -> None:
    result = compress(model, criterion="last", per_latency=True, remove=1)
    assert len(result.steps) == 2
    # What saves nothing measurable is not chosen; the scores are divided, so they are not counts.
    assert set(result.steps[1].scores) == set(LAST)


def test_what_saves_nothing_does_not_go_and_stands_as_null_in_json(
    model: Network, tmp_path: Path
) -> None:
    saved = {f"drop {name}": float(name.startswith("layer1")) for name in LAST}
    gauge = FakeGauge(VAL, saved=lambda *_: (40.0, saved))
    options = {"criterion": "last", "per_latency": True, "out": tmp_path / "run", "gauge": gauge}
    result = compress(model, **options)
    assert dropped(result) == [("layer1.2",), ("layer1.1",), ("layer1.0",)]
    assert "save time" in result.stopped
    assert result.steps[1].scores["layer3.2"] == float("inf")

    def strict(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for file in (tmp_path / "run").rglob("*.json"):
        json.loads(file.read_text(), parse_constant=strict)
    for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=strict)
    again = compress(model, **options)
    assert [step.scores for step in again.steps] == [step.scores for step in result.steps]


def test_floors_that_keep_all_are_named(model: Network) -> None:
    with pytest.raises(ConfigError, match="keep_per_stage keep every removable block"):
        compress(model, keep_per_stage=5)


def test_a_wrong_criterion_or_option_is_one_line(model: Network) -> None:
    for options, error, words in (
        ({"criterion": "ckaa"}, NameNotFoundError, "cka"),
        ({"criterion": "cka?place=site"}, ConfigError, "scores sites"),
        ({"keep_per_stage": -1}, ConfigError, "keep_per_stage"),
        ({"rewind": 2, "dense_epochs": 1}, ConfigError, "dense_epochs"),
        ({"rewind": 0, "rewind_from": "x.pt"}, ConfigError, "choose one"),
        ({"score_on": "rewound"}, ConfigError, "rewind"),
        ({"score_on": "both"}, ConfigError, "one of trained, rewound"),
        ({"rewind": 1, "dense_epochs": 1, "fit": lambda n: None}, ConfigError, "fit="),
    ):
        with pytest.raises(error, match=words) as caught:
            compress(model, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_easier_takes_site_criteria_of_the_same_registry(model: Network) -> None:
    options = {"method": "easier", "remove": 1, "how": "identity"}
    result = compress(model, **options)
    assert dropped(result) == [(model.sites[-1].name,)]
    with pytest.raises(ConfigError, match="scores blocks"):
        compress(model, **options, criterion="l2")


# ---------------------------------------------------------------------- rewinding


class Watch(Listener):
    """Notes the weights at each epoch of the dense training and stops the run where told."""

    def __init__(self, stop: Callable[[int, int], bool] = lambda step, epoch: False) -> None:
        self.now = 0
        self.stop = stop
        self.heard: list[int] = []

    def stage(self, step: int, text: str) -> None:
        self.now = step

    def epoch(self, report: EpochReport, epochs: int) -> None:
        self.heard.append(report.epoch)
        if self.stop(self.now, report.epoch):
            raise KeyboardInterrupt


@pytest.mark.long
def test_rewinding_gives_back_the_first_weights(model: Network) -> None:
    result = compress(model, dense_epochs=2, rewind=0, remove=2)
    own = result.model.state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in own.items())
    kept = compress(model, dense_epochs=2, remove=2).model.state_dict()
    assert any(not torch.equal(kept[name], own[name]) for name in own)


def test_rewinding_to_an_epoch_of_the_run(model: Network, tmp_path: Path) -> None:
    in_memory = compress(model, dense_epochs=2, rewind=1, remove=1).model.state_dict()
    in_folder = compress(
        model, dense_epochs=2, rewind=1, remove=1, out=tmp_path / "run"
    ).model.state_dict()
    last = compress(model, dense_epochs=2, remove=1).model.state_dict()
    assert all(torch.equal(in_folder[name], value) for name, value in in_memory.items())
    names = [name for name in in_memory if name.endswith("weight")]
    start = model.state_dict()
    assert any(not torch.equal(in_memory[name], start[name]) for name in names)
    assert any(not torch.equal(in_memory[name], last[name]) for name in names)


def test_an_epoch_that_early_stopping_never_came_to_is_one_clear_error(
    model: Network, tmp_path: Path
) -> None:
    """All epochs are as good as the first, and patience is one epoch."""
    stands = {"evaluate": lambda network, data: 50.0, "early_stop": 1}
    for out, trained in ((None, [1, 2]), (tmp_path / "run", [1, 2]), (tmp_path / "run", [])):
        watch = Watch()
        with pytest.raises(ConfigError, match=r"rewind=4, but early_stop .* after 2 epochs"):
            compress(model, dense_epochs=5, rewind=4, out=out, listener=watch, **stands)
        assert watch.heard == trained  # once
    # What has the epoch, goes on.
    compress(model, dense_epochs=5, rewind=2, remove=1, out=tmp_path / "other", **stands)


def test_rewinding_to_a_file(model: Network, tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = cifar_resnet20(num_classes=4, width=4)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "early.pt")
    result = compress(model, rewind_from=str(tmp_path / "early.pt"), remove=1)
    own = result.model.state_dict()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in own.items())


def test_pruning_at_initialization(model: Network) -> None:
    # The scores are those of the weights that were given, not of the trained ones.
    options = {"criterion": "snip?statistics=batch", "rewind": 0, "dense_epochs": 1}
    result = compress(model, score_on="rewound", per_step=2, remove=2, epochs=1, **options)
    scores = shoal.score(model, TRAIN, "snip", statistics="batch")
    assert result.steps[1].scores == pytest.approx(dict(scores), rel=1e-5)
    assert result.steps[1].names == tuple(scores.lowest(2))
    trained = compress(model, remove=1, **options)
    assert trained.steps[1].scores != pytest.approx(dict(scores), rel=1e-5)


# ---------------------------------------------------------------------- the run's folder


@pytest.mark.long
@pytest.mark.parametrize(
    "stop", [(0, 1), (0, 2), (1, 1), (2, 1)], ids=lambda s: f"step{s[0]}epoch{s[1]}"
)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    model: Network, tmp_path: Path, stop: tuple[int, int]
) -> None:
    options = {"criterion": "cka", "epochs": 1, "dense_epochs": 2, "rewind": 1, "remove": 3}
    whole = compress(model, **options)
    watch = Watch(lambda step, epoch: (step, epoch) == stop)
    with pytest.raises(KeyboardInterrupt):
        compress(model, **options, out=tmp_path, listener=watch)
    if stop == (0, 1):
        # As if it had been killed between the epoch's checkpoint and the keeping of its weights.
        (tmp_path / "rewind.safetensors").unlink()
    result = compress(model, **options, out=tmp_path)
    assert dropped(result) == dropped(whole)
    state = whole.model.state_dict()
    assert all(torch.equal(v, state[name]) for name, v in result.model.state_dict().items())
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["removed"] == 3
    assert [step["operation"] for step in record["steps"][1:]] == ["drop"] * 3
    loaded = shoal.load(tmp_path, "best")
    with torch.no_grad():
        assert torch.equal(loaded(VAL[0][0]), result.model(VAL[0][0]))


def test_lost_weights_of_an_epoch_are_told(model: Network, tmp_path: Path) -> None:
    options = {"dense_epochs": 1, "rewind": 1, "epochs": 1, "remove": 2}
    watch = Watch(lambda step, epoch: step == 1)
    with pytest.raises(KeyboardInterrupt):
        compress(model, **options, out=tmp_path, listener=watch)
    (tmp_path / "rewind.safetensors").unlink()
    with pytest.raises(shoal.ShoalError, match="epoch 1 are missing"):
        compress(model, **options, out=tmp_path)
