from __future__ import annotations

import math

import pytest
import torch

import small_runs
from shoal.errors import ConfigError
from shoal.importance import Criterion, Scores, criteria, register_criterion, score
from shoal.network import Network
from shoal.passes import Data
from small_runs import FakeGauge, digits, run


def test_the_lowest_entropy_goes_at_every_step() -> None:
    result = run()
    assert len(result.steps) == 5
    for step in result.steps[1:]:
        assert step.operation == "linearize"
        assert step.scores[step.names[0]] == min(step.scores.values())
        assert step.settled  # all data were counted
    # What is gone is not scored again.
    assert [len(step.scores) for step in result.steps] == [0, 4, 3, 2, 1]


def test_the_first_scores_are_the_dense_networks() -> None:
    expected = score(small_runs.captured(), digits().train)
    assert run(remove=1).steps[1].scores == dict(expected)


def test_two_per_step_are_the_two_lowest() -> None:
    step = run(remove=2, per_step=2).steps[1]
    assert list(step.names) == sorted(step.scores, key=step.scores.__getitem__)[:2]


def test_a_line_keeps_more_accuracy_than_the_identity() -> None:
    """The fitted line has the least squared error of all lines, the identity is one of them."""
    options = {"fit": lambda network: None, "remove": 4, "per_step": 4, "move_padding": False}
    line, identity = run(how="line", **options), run(how="identity", **options)
    assert line.final.top1_val > identity.final.top1_val
    assert {site.linearized for site in line.model.sites} == {"line"}
    assert {site.linearized for site in identity.model.sites} == {"identity"}


def test_few_samples_say_if_the_choice_is_not_certain() -> None:
    step = run(remove=1, samples=60, train=digits(batch_size=10).train).steps[1]
    assert step.settled in (True, False)
    assert (step.settled is False) == any("not settled" in note for note in step.notes)


def test_a_rectifier_that_died_beside_a_skip_goes_first() -> None:
    """It does nothing any more, and the signal goes past it."""

    def train(network: Network) -> None:
        network.get_parameter("conv2.weight").data.zero_()
        network.get_parameter("conv2.bias").data.fill_(-1.0)

    result = run(fit=train, remove=2)
    first, second = result.steps[1:]
    assert first.names != ("act",)
    assert first.scores["act"] > 0.0
    assert second.names == ("act",)
    assert second.scores["act"] == 0.0


def test_importance_is_divided_by_the_latency_saved() -> None:
    """What saves most goes first, what saves nothing last, however little it matters."""
    plain = run(remove=1).steps[1].scores
    last, *others = sorted(plain, key=plain.__getitem__)
    saved = {last: 0.0, **dict.fromkeys(others, 1.0), others[-1]: 1e6}
    table = {f"linearize {name}": value for name, value in saved.items()}
    gauge = FakeGauge(digits().val, saved=lambda *_: (40.0, table))
    step = run(remove=1, per_latency=True, gauge=gauge).steps[1]
    assert step.names == (others[-1],)
    assert step.scores[last] == math.inf
    assert step.scores[others[-1]] == pytest.approx(plain[others[-1]] / 1e6)


@pytest.mark.parametrize("how", ["line", "identity"])
def test_line_loss_tries_what_will_be_put_in(how: str) -> None:
    step = run(remove=1, how=how, criterion="line_loss?precision='fp32'").steps[1]
    whole = score(small_runs.captured(), digits().train, "line_loss", how=how, precision="fp32")
    assert step.scores == pytest.approx(dict(whole), rel=1e-5)


def test_a_criterion_for_blocks_is_refused() -> None:
    @register_criterion("of blocks")
    class OfBlocks(Criterion):
        place = "block"

        def compute(self, network: Network, data: Data) -> Scores:
            raise NotImplementedError

    try:
        with pytest.raises(ConfigError, match="criterion 'of blocks' scores blocks"):
            run(criterion="of blocks")
    finally:
        del criteria._entries["of blocks"]


def test_the_dense_network_is_trained_first_if_asked_for() -> None:
    result = run(model=small_runs.build(), dense_epochs=3, remove=1)
    assert result.steps[0].epochs == 3
    assert result.dense.top1_val > 20.0
    assert torch.isfinite(torch.tensor(result.dense.latency_ms))
