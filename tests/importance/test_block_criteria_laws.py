"""Laws that all criteria for blocks obey, and the errors they raise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from block_networks import batches, removable
from torch import Tensor, nn

import shoal
from changed import changed
from shoal.errors import ConfigError, DataError, NameNotFoundError, TrainingError
from shoal.importance import Scores, criteria, per_latency, score_several
from shoal.importance.criteria import criterion_for, make_criterion
from shoal.network import Network
from shoal.surgery import drop_, zero_out_

DATA = (
    "cka", "kl", "lesion", "block_influence", "block_entropy", "hrank", "taylor", "snip", "grasp",
    "fit_residual?place=block", "consensus?criteria=cka+fit_residual+snip",
)  # fmt: skip


@pytest.mark.parametrize("criterion", DATA)
def test_batch_size_and_order_do_not_matter(
    criterion: str, network: Network, images: Tensor, labels: Tensor
) -> None:
    first = shoal.score(network, batches(images, labels, 8), criterion)
    others = [batches(images, labels, 5), list(reversed(batches(images, labels, 8)))]
    mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(3))
    others.append(batches(images[mixed], labels[mixed], 11))
    near = {"rel": 1e-7, "abs": 1e-11}
    if "fit_residual" in criterion:  # its sums are of products in float32
        near = {"rel": 1e-4, "abs": 1e-6}
    for loader in others:
        again = shoal.score(network, loader, criterion)
        for name, value in first.items():
            assert again[name] == pytest.approx(value, **near)


@pytest.mark.long
@pytest.mark.parametrize(
    "criterion", ["l1", "l2", "bn_scale", "consensus?criteria=l1+l2", "block_influence", "kl"]
)
def test_broken_weights_are_an_error_and_no_rank(
    criterion: str, model: nn.Module, images: Tensor
) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.layer1[1].conv1.weight[0, 0, 0, 0] = float("nan")
        broken.layer1[1].bn2.weight[0] = float("nan")
    network = shoal.capture(broken, images[:2], check=False)
    with pytest.raises(TrainingError, match="is NaN"):
        shoal.score(network, [images], criterion)


def test_gradient_criteria_leave_everything_as_it_was(
    network: Network, images: Tensor, labels: Tensor
) -> None:
    twin = network.copy()
    frozen = twin.get_parameter("conv1.weight")
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    twin.train()
    for criterion in ("snip?statistics=batch", "grasp"):
        shoal.score(twin, batches(images, labels), criterion)
    assert all(module.training for module in twin.modules())
    assert not frozen.requires_grad
    assert all(p.grad is None for p in twin.parameters())
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


def test_criteria_of_gradients_share_their_passes(
    network: Network, images: Tensor, labels: Tensor
) -> None:
    class Counted(list):  # type: ignore[type-arg]
        passes = 0

        def __iter__(self) -> Any:
            Counted.passes += 1
            return super().__iter__()

    loader = Counted(batches(images, labels))
    score_several(network, loader, [make_criterion(n) for n in ("taylor", "snip", "grasp")])
    assert Counted.passes == 2  # gradients, and then their products with the Hessian


@pytest.mark.parametrize("criterion", ["cka", "kl", "lesion", "block_influence"])
def test_a_block_that_does_nothing_scores_zero(
    criterion: str, network: Network, images: Tensor, labels: Tensor
) -> None:
    idle = changed(zero_out_, network.copy(), ["layer1.1", "layer3.2"])
    scores = shoal.score(idle, batches(images, labels), criterion)
    assert scores["layer1.1"] == pytest.approx(0.0, abs=1e-12)
    assert scores["layer3.2"] == pytest.approx(0.0, abs=1e-12)
    assert abs(scores["layer1.0"]) > 1e-6


def test_random_scores_follow_from_seed_and_name(network: Network) -> None:
    first, again = (shoal.score(network, (), "random", seed=3) for _ in range(2))
    other = shoal.score(network, (), "random", seed=4)
    assert dict(first) == dict(again) != dict(other)
    assert all(0 <= value < 1 for value in first.values())
    less = shoal.score(changed(drop_, network.copy(), "layer1.0"), (), "random", seed=3)
    assert all(less[name] == first[name] for name in less)
    sites = shoal.score(network, (), "random", place="site")
    assert list(sites) == [site.name for site in network.sites]


def test_last_goes_first(network: Network) -> None:
    names = removable(network)
    assert shoal.score(network, (), "last").lowest(len(names)) == names[::-1]


def test_consensus_sums_ranks(network: Network, images: Tensor, labels: Tensor) -> None:
    loader = batches(images, labels)
    members = ["cka", "l1", "block_influence"]
    found = shoal.score(network, loader, "consensus", criteria=members)
    names = removable(network)
    wanted = dict.fromkeys(names, 0.0)
    for member in members:
        scores = shoal.score(network, loader, member)
        for place, name in enumerate(sorted(names, key=scores.__getitem__)):
            wanted[name] += place
    assert dict(found) == wanted
    assert dict(shoal.score(network, loader, "consensus?criteria=cka,l1,block_influence")) == wanted


def test_equal_scores_share_their_rank(network: Network, images: Tensor, labels: Tensor) -> None:
    idle = changed(zero_out_, network.copy(), ["layer1.1", "layer3.2"])
    loader = batches(images, labels)
    scores = shoal.score(idle, loader, "consensus", criteria=["kl", "cka"])
    assert scores["layer1.1"] == scores["layer3.2"] == 1.0


def test_several_criteria_score_as_each_alone(
    network: Network, images: Tensor, labels: Tensor
) -> None:
    loader = batches(images, labels)
    names = ["lesion", "block_influence", "cka", "entropy", "block_entropy", "hrank", "l1", "kl",
             "snip", "taylor", "grasp", "snip?statistics=batch"]  # fmt: skip
    together = score_several(network, loader, [make_criterion(name) for name in names])
    for name, scores in zip(names, together, strict=True):
        assert dict(scores) == dict(shoal.score(network, loader, name))


def test_importance_per_millisecond(network: Network, images: Tensor, labels: Tensor) -> None:
    loader = batches(images, labels)
    bare = shoal.score(network, loader, "kl")
    saved = {name: 0.5 + i for i, name in enumerate(bare)}
    weighted = shoal.score(network, loader, "kl", saved_ms=saved)
    assert dict(weighted) == pytest.approx({n: bare[n] / saved[n] for n in bare})
    signed = per_latency(Scores("x", {"a": -1.0, "b": -1.0, "c": 1.0}, 1), dict(a=1, b=2, c=0))
    assert signed.lowest(3) == ["b", "a", "c"]
    with pytest.raises(ConfigError, match="not measured"):
        per_latency(bare, {})


def test_only_some_samples(network: Network, images: Tensor, labels: Tensor) -> None:
    part = shoal.score(network, batches(images, labels, 8), "kl", samples=10)
    alone = shoal.score(network, batches(images[:10], labels[:10], 10), "kl")
    assert part.samples == 10
    assert dict(part) == pytest.approx(dict(alone))


# ---------------------------------------------------------------------- errors


def test_wrong_options_are_one_line(network: Network) -> None:
    for criterion, words in (
        ("lesion?metric=top5", "give one of loss, accuracy"),
        ("l1?scope=layer", "give one of stage, global"),
        ("cka?place=layer", "place is .layer.: give one of block, site"),
        ("snip?statistics=none", "give one of running, batch"),
        ("block_influence?vectors=all", "give one of auto, position, sample"),
        ("consensus?criteria=cka", "two criteria"),
        ("kl?mode=1", "does not take these options"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            shoal.score(network, (), criterion)
        assert "\n" not in str(caught.value)
    with pytest.raises(NameNotFoundError, match="lesion"):
        shoal.score(network, (), "leson")


def test_data_without_labels_or_samples(network: Network, images: Tensor) -> None:
    for criterion in ("lesion", "taylor"):
        with pytest.raises(DataError, match="no target"):
            shoal.score(network, list(images.split(8)), criterion)
    for criterion in ("cka", "taylor", "block_influence"):
        with pytest.raises(DataError, match="empty"):
            shoal.score(network, [], criterion)


@pytest.mark.parametrize("criterion", ["cka", "kl", "lesion", "block_influence", "snip"])
def test_nan_is_an_error(criterion: str, network: Network, images: Tensor, labels: Tensor) -> None:
    with pytest.raises(TrainingError):
        shoal.score(network, batches(images * float("nan"), labels), criterion)


def test_a_network_without_blocks() -> None:
    plain = shoal.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    for criterion in sorted(set(criteria) - {"entropy"}):
        made = make_criterion(criterion)
        if made.place == "block":
            with pytest.raises(ConfigError, match="no residual block"):
                shoal.score(plain, [torch.randn(2, 4)], criterion)


def test_a_method_gets_the_criterion_for_what_it_removes() -> None:
    assert criterion_for("entropy", "site").place == "site"
    assert criterion_for("entropy", "block").place == "block"
    assert criterion_for("random", "site", seed=5).options.seed == 5
    assert criterion_for("random?seed=7", "block", seed=5).options.seed == 7
    assert criterion_for("cka", "site").place == "site"
    assert criterion_for("l1", "site").place == "site"
    with pytest.raises(ConfigError, match="scores blocks"):
        criterion_for("block_influence", "site")
