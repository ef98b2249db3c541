"""TLC: what goes at a step follows from losses on one set, and channels that are off stay off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
import small_runs
from shoal.errors import ConfigError, NothingToRemoveError
from shoal.importance.trials import line_scores
from shoal.network import Network
from shoal.passes import Data
from shoal.search.records import Result
from shoal.surgery import FittedLine, linearize_, norm_lines
from shoal.surgery.norm_lines import implied_lines, norm_inputs
from shoal.tasks import find_task
from shoal.training import evaluate
from small_chain import chain
from small_runs import FakeGauge, digits, run


def tlc(model: Network | None = None, out: Path | None = None, **options: Any) -> Result:
    given = {"method": "tlc", "epochs": 0, "model": model, "out": out, **options}
    return run(**given)


def loss(net: Network, samples: int = 1000) -> float:
    found = evaluate(net, digits().train, limit=samples).loss
    assert found is not None
    return found


@pytest.mark.long
def test_scores_are_the_rise_of_the_loss_without_each_rectifier() -> None:
    residual = chain()
    step = tlc(residual, remove=1).steps[1]
    lines = norm_lines(residual)
    assert set(step.scores) == set(lines)
    assert len(lines) < residual.sites_left  # none behind an addition
    for name in lines:
        without = residual.copy()
        linearize_(without, name, lines=lines)
        assert step.scores[name] == pytest.approx(loss(without) - loss(residual), abs=1e-6)
    assert step.names == (min(step.scores, key=step.scores.__getitem__),)


def together(net: Network, names: tuple[str, ...]) -> float:
    """The loss with the lines of all these."""
    changed = net.copy()
    linearize_(changed, list(names), lines=norm_lines(net, names))
    return loss(changed)


def test_the_largest_set_goes_that_does_not_raise_the_loss() -> None:
    residual = chain()
    broken = residual.copy()  # whose loss removals lower: its last layer is turned round
    broken.get_parameter("fc.weight").data.neg_()
    own, over = (tlc(broken, rounds=1, overshoot=over).steps[1] for over in (False, True))
    order = sorted(own.scores, key=own.scores.__getitem__)
    assert own.scores[order[0]] < 0
    assert list(own.names) == order[: len(own.names)]
    for count in range(1, len(own.names) + 1):
        assert together(broken, own.names[:count]) <= loss(broken)
    if len(own.names) < len(order):
        assert together(broken, tuple(order[: len(own.names) + 1])) > loss(broken)
        assert list(over.names) == order[: len(own.names) + 1]


def test_masked_channels_are_off_and_stay_off_through_training(tmp_path: Path) -> None:
    residual = chain()
    result = tlc(residual, tmp_path, replace="mask", epochs=1, remove=2)
    for step in result.steps[1:]:
        before = residual if step.step == 1 else shoal.load(tmp_path, step=step.step - 1)
        after = shoal.load(tmp_path, step=step.step)
        for name in step.names:
            off = norm_inputs(before)[name].mean <= 0
            slope = after.get_parameter(f"{name}.slope")
            assert bool((slope[off] == 0).all())
            assert bool((after.get_parameter(f"{name}.intercept")[off] == 0).all())
            assert bool((slope[~off] != 0).all())
    first = result.steps[1].names[0]
    last = result.model.get_parameter(f"{first}.slope")
    assert bool(((last == 0) == (norm_inputs(residual)[first].mean <= 0)).all())


def test_the_last_training_leaves_masked_channels_off(tmp_path: Path) -> None:
    result = tlc(chain(), tmp_path, replace="mask", epochs=1, remove=2, final_epochs=2)
    _, _, removed, last = result.steps
    assert (last.operation, last.begun_from, last.epochs) == ("fine-tune", removed.step, 2)
    before, after = (shoal.load(tmp_path, step=step.step) for step in (removed, last))
    linear = [site.name for site in after.sites if site.linearized]
    assert len(linear) == 2
    assert not small_runs.same_weights(before, after)
    for name in linear:
        slopes = [net.get_parameter(f"{name}.slope") for net in (before, after)]
        assert 0 < int((slopes[0] == 0).sum()) < len(slopes[0])
        assert torch.equal(slopes[0] == 0, slopes[1] == 0)


def test_inputs_are_measured_where_there_is_no_norm() -> None:
    net = small_runs.captured()
    step = tlc(inputs="data", remove=1, keep=0).steps[1]
    assert set(step.scores) == set(small_runs.SITES)
    without = net.copy()
    linearize_(without, "last", lines=implied_lines(net, loader=digits().train))
    assert step.scores["last"] == pytest.approx(loss(without) - loss(net), abs=1e-6)


def test_it_stops_as_published() -> None:
    few = tlc(inputs="data")
    assert few.model.sites_left == 1
    assert few.stopped == "nothing is left to remove"
    assert tlc(inputs="data", rounds=1).stopped == "all rounds are done"
    low = FakeGauge(digits().val, quality=lambda net: 90.0 if net.sites_left == 4 else 15.0)
    fallen = tlc(inputs="data", floor=20.0, gauge=low)
    assert len(fallen.steps) == 2
    assert fallen.stopped == "the quality fell below 20 points"


def test_a_network_without_norms_is_one_line() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(NothingToRemoveError, match="use inputs='data'"):
        tlc(model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="replace is 'zero'"):
        tlc(replace="zero")


# ---------------------------------------------------------------------- one normed rectifier


def normed(mean: float, deviation: float) -> Network:
    """A rectifier behind a batch norm that gives what is standard normal these two."""
    norm = nn.BatchNorm1d(1, eps=0.0)
    norm.weight.data.fill_(-deviation)  # its sign says nothing
    norm.bias.data.fill_(mean)
    return shoal.capture(nn.Sequential(norm, nn.ReLU()).double().eval(), torch.randn(4, 1).double())


def constant_line(slope: float) -> FittedLine:
    return FittedLine(torch.tensor([slope]), torch.tensor([0.0]), 0.0)


@pytest.fixture(scope="module")
def gaussian() -> Tensor:
    """The midpoints of equal shares of a standard normal, [samples, 1]."""
    count = 200_000
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(shares)[:, None]


@pytest.mark.parametrize(
    ("mean", "deviation", "line", "identity", "zero"),
    [
        (1.0, 1.0, 0.0432, 0.0753, 1.9247),
        (0.0, 1.0, 0.0908, 0.5, 0.5),
        (-1.0, 2.0, 0.3013, 4.1614, 0.8386),
        (-2.0, 0.5, 1e-6, 4.25, 1e-6),
    ],
)
def test_the_squared_errors_of_the_line_and_of_tlcs_two_options(
    mean: float, deviation: float, line: float, identity: float, zero: float, gaussian: Tensor
) -> None:
    """As the method scores them, where the rectifier's output is the target of a regression."""
    net = normed(mean, deviation)
    (name,) = (site.name for site in net.sites)
    data = Data([(gaussian, net(gaussian).detach())])
    lines = {
        "line": norm_lines(net)[name],
        "mask": implied_lines(net, "mask")[name],
        "identity": constant_line(1.0),
        "zero": constant_line(0.0),
    }
    task = find_task("regress")
    found = {how: line_scores(net, {name: put}, data, task)[name] for how, put in lines.items()}
    taken = identity if mean > 0 else zero
    known = {"line": line, "mask": taken, "identity": identity, "zero": zero}
    for how, error in known.items():
        assert found[how] == pytest.approx(error, abs=6e-5 if error > 1e-5 else 5e-7), how
    assert found["line"] <= found["mask"]


def test_the_line_without_data_is_autoreps_polynomial_of_degree_1() -> None:
    """DAPA (Peng et al. 2023): of u = 0.5 and s = 1 it is 0.691462·z + 0.352065."""
    (line,) = norm_lines(normed(0.5, 1.0)).values()
    assert line.slope.item() == pytest.approx(0.691462, abs=1e-6)
    assert line.intercept.item() == pytest.approx(0.352065, abs=1e-6)
