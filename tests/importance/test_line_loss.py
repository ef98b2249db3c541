"""Line loss is the loss after linearizing, found without linearizing anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captures import resnet20
from changed import changed
from shoal.errors import ConfigError, DataError, TrainingError
from shoal.importance import criterion_for, score
from shoal.importance.candidates import Candidate
from shoal.importance.replaced import TrialOptions, replacement_scores
from shoal.importance.trials import LineLoss
from shoal.models import cifar_resnet20
from shoal.network import Network, capture
from shoal.passes import Data
from shoal.surgery import linearize_
from shoal.training import evaluate

Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet20()


@pytest.fixture(scope="module")
def loader() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(20, 3, 16, 16, generator=generator),
            torch.randint(0, 10, (20,), generator=generator),
        )
        for _ in range(3)
    ]


EXACT = {"keep": None, "line_samples": None, "positions": None, "precision": "fp32"}


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_it_is_what_linearizing_and_evaluating_gives(
    network: Network, loader: list[Batch], metric: str
) -> None:
    scores = score(network, loader, criterion="line_loss", metric=metric, **EXACT)
    dense = evaluate(network, loader)
    assert list(scores) == [site.name for site in network.sites]
    for name in scores:
        after = evaluate(changed(linearize_, network.copy(), name, loader=loader), loader)
        assert scores.details[name]["loss"] == pytest.approx(after.loss, abs=1e-5)
        assert scores.details[name]["top1"] == pytest.approx(after.top1)
        rise = after.loss - dense.loss if metric == "loss" else dense.top1 - after.top1
        assert scores[name] == pytest.approx(rise, abs=1e-5)


@pytest.mark.parametrize("screen", [None, 4])
def test_with_how_identity_it_is_what_an_identity_costs(
    network: Network, loader: list[Batch], screen: int | None
) -> None:
    scores = score(network, loader, "line_loss", how="identity", screen=screen, **EXACT)
    dense = evaluate(network, loader)
    assert len(scores) == (screen or len(network.sites))
    for name in scores:
        after = evaluate(changed(linearize_, network.copy(), name, how="identity"), loader)
        assert scores[name] == pytest.approx(after.loss - dense.loss, abs=1e-5)


def test_sites_of_transformers_and_functions_too() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 6), nn.Linear(6, 4)
            self.act = nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.b(self.act(self.a(x)))
            return self.c(torch.relu(self.act(x)).mean(1))

    torch.manual_seed(0)
    network = capture(Mixed().eval(), torch.randn(2, 5, 6))
    data = [(torch.randn(16, 5, 6), torch.randint(0, 4, (16,))) for _ in range(2)]
    scores = score(network, data, criterion="line_loss", **EXACT)
    assert list(scores) == ["act", "act_1", "relu"]
    for name in scores:
        after = evaluate(changed(linearize_, network.copy(), name, loader=data), data)
        assert scores.details[name]["loss"] == pytest.approx(after.loss, abs=1e-5)


def test_putting_back_the_same_value_costs_exactly_nothing(
    network: Network, loader: list[Batch]
) -> None:
    nodes = [network.node_of(site.name) for site in network.sites]
    same = [Candidate(n.name, n, n) for n in nodes]
    options = TrialOptions(keep=3, precision="fp32")
    scores = replacement_scores("same", network, same, Data(loader), options)
    assert set(scores.values()) == {0.0}
    assert {detail["loss"] for detail in scores.details.values()} == {
        scores.details[nodes[0].name]["whole_loss"]
    }


def test_linearized_sites_are_not_scored_again(network: Network, loader: list[Batch]) -> None:
    less = changed(linearize_, network.copy(), ["layer1.0.relu"], how="identity")
    scores = score(less, loader, criterion="line_loss")
    assert set(scores) == {site.name for site in network.sites} - {"layer1.0.relu"}


@pytest.mark.long
def test_a_site_that_is_always_on_costs_nothing_and_goes_first(loader: list[Batch]) -> None:
    torch.manual_seed(0)
    model = cifar_resnet20(width=4).eval()
    nn.init.constant_(model.layer2[1].bn1.bias, 50.0)
    scores = score(
        capture(model, torch.randn(2, 3, 16, 16)), loader, criterion="line_loss", precision="fp32"
    )
    assert scores["layer2.1.relu"] == pytest.approx(0.0, abs=1e-4)


def test_the_race_finds_the_best_and_spares_the_worst() -> None:
    """A site that ruins the answer is left after a part of the samples; the best sees them all."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        layers[2].weight.copy_(torch.eye(32) * 3)  # type: ignore[union-attr, operator]
        layers[2].bias.fill_(5.0)  # type: ignore[union-attr, operator]
    network = capture(model.eval(), torch.randn(2, 8))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1600, 8, generator=generator)
    with torch.no_grad():
        labels = network(inputs).argmax(1)
    data = list(zip(inputs.split(100), labels.split(100), strict=True))
    race = score(network, data, criterion="line_loss", keep=1, line_samples=None, precision="fp32")
    whole = score(network, data, criterion="line_loss", **EXACT)
    assert race.lowest() == whole.lowest() == ["3"]
    assert race.settled
    assert race.samples < whole.samples == 1600
    for name in race:
        assert abs(race[name] - whole[name]) < 4.0 * race.standard_errors[name] + 1e-4


def test_who_left_the_race_never_comes_before_who_stayed() -> None:
    """Later samples are dearer for all, so that a cost seen on the first ones alone looks small."""
    torch.manual_seed(1)
    width = [nn.Linear(8, 24), nn.ReLU()]
    for _ in range(6):
        width += [nn.Linear(24, 24), nn.ReLU()]
    model = nn.Sequential(*width, nn.Linear(24, 4)).eval()
    network = capture(model, torch.randn(2, 8))
    inputs = torch.randn(1600, 8) * torch.linspace(0.2, 8.0, 1600).view(-1, 1)
    data = list(zip(inputs.split(50), (torch.arange(1600) % 4).split(50), strict=True))
    scores = score(network, data, criterion="line_loss", keep=1, precision="fp32")
    samples = {name: scores.details[name]["samples"] for name in scores}
    assert scores.lowest(1)[0] in [n for n in scores if samples[n] == max(samples.values())]
    assert sorted(samples.values()) == [200] * 3 + [400] * 2 + [800] * 2  # halves, to the budget


def test_a_screen_judges_the_sites_of_lowest_entropy(network: Network, loader: list[Batch]) -> None:
    entropies = score(network, loader, criterion="entropy")
    scores = score(network, loader, criterion="line_loss", screen=5)
    assert set(scores) == set(entropies.lowest(5))


def test_a_part_of_the_samples_comes_with_standard_errors(
    network: Network, loader: list[Batch]
) -> None:
    part = score(network, loader, samples=40, criterion="line_loss")
    assert part.samples == 40
    assert all(error > 0.0 for error in part.standard_errors.values())
    whole = score(network, loader, criterion="line_loss", keep=None)
    assert set(whole.standard_errors.values()) == {0.0}


def test_options_are_checked(network: Network, loader: list[Batch]) -> None:
    with pytest.raises(ConfigError, match="metric is 'f1'"):
        LineLoss(metric="f1")
    with pytest.raises(ConfigError, match="how is 'spline'"):
        LineLoss(how="spline")
    with pytest.raises(ConfigError, match="screen is 0"):
        LineLoss(screen=0)
    with pytest.raises(ConfigError, match="keep is 0"):
        score(network, loader, criterion="line_loss", keep=0)
    with pytest.raises(DataError, match="no target"):
        score(network, [x for x, _ in loader], criterion="line_loss")
    with pytest.raises(DataError, match="empty"):
        score(network, [], criterion="line_loss")
    # Lines are fitted in a pass of their own.
    with pytest.raises(DataError, match="is an iterator that is used up: give a list"):
        score(network, iter(loader), criterion="line_loss")


def test_broken_data_are_an_error(network: Network, loader: list[Batch]) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        score(network, [(x / 0.0, y) for x, y in loader], criterion="line_loss")


def test_a_consensus_tries_what_will_be_put_in(network: Network, loader: list[Batch]) -> None:
    """Its ranks are those of the members that try the same."""
    ranks = {}
    for how in ("line", "identity"):
        wanted = dict.fromkeys((site.name for site in network.sites), 0.0)
        for name, options in (("line_loss", {"how": how}), ("site_l1", {})):
            scores = score(network, loader, criterion=name, **options)
            for place, site in enumerate(sorted(wanted, key=scores.__getitem__)):
                wanted[site] += place
        chosen = criterion_for("consensus?criteria=line_loss+site_l1", "site", how=how)
        ranks[how] = dict(score(network, loader, chosen))
        assert ranks[how] == wanted
    assert ranks["line"] != ranks["identity"]
    with pytest.raises(ConfigError, match="how is 'lines': give one of line, identity"):
        score(network, loader, criterion="consensus", place="site", how="lines")
