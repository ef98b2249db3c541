"""The distances of LaCoOT: known figures and bounds; criterion and penalty by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import shoal
from shoal.importance.transport import (
    block_distance,
    distance_of,
    max_sliced_distance,
    sliced_distances,
)
from shoal.network import Network
from shoal.options import DistanceOptions
from shoal.training import fit
from small_chain import chain

ALONG = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]).T
THREE = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
MOVED = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]])


@pytest.mark.parametrize(
    ("x", "y", "distances"),
    [
        (torch.tensor([[0.0, 0], [2, 0]]), torch.tensor([[1.0, 0], [3, 0]]), [1.0, 0.0, 0.6]),
        (THREE, THREE.flip(0), [0.0, 0.0, 0.0]),  # no sample is kept, and the sets are equal
        (THREE, MOVED, [1.154701, 0.577350, 0.816497]),
    ],
)
def test_known_distances(x: Tensor, y: Tensor, distances: list[float]) -> None:
    assert sliced_distances(x, y, ALONG).tolist() == pytest.approx(distances, abs=1e-6)


def test_the_maximum_over_the_circle() -> None:
    angles = torch.linspace(0, math.pi, 1801)
    found = sliced_distances(THREE, MOVED, torch.stack([angles.cos(), angles.sin()]))
    assert float(found.max()) == pytest.approx(1.154701, abs=1e-6)
    assert int(found.argmax()) in (0, 1800)
    reached = float(max_sliced_distance(THREE, MOVED, directions=50, optimise=10))
    assert reached == pytest.approx(1.154701, rel=1e-3)


def test_it_lies_between_the_means_and_the_pairs() -> None:
    means = float((THREE - MOVED).mean(0).norm())
    pairs = float((THREE - MOVED).square().sum(1).mean().sqrt())
    assert (means, pairs) == pytest.approx((0.745356, 1.290994), abs=1e-6)
    assert means <= float(max_sliced_distance(THREE, MOVED, 1, optimise=1)) <= pairs
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(9, 40)
        y = x + 0.5 * torch.randn(9, 40) + 0.3
        low, high = (x - y).mean(0).norm(), (x - y).square().sum(1).mean().sqrt()
        random, ascended = (max_sliced_distance(x, y, 50, steps) for steps in (0, 5))
        assert low - 1e-5 <= ascended <= high + 1e-5
        assert random <= high + 1e-5
        more = max_sliced_distance(x, y, 50, 50)
        assert more <= high + 1e-5


@pytest.mark.parametrize(
    ("size", "share"), [(16384, 0.020), (8192, 0.028), (4096, 0.039), (2048, 0.055)]
)
def test_random_directions_see_little_of_a_shift(size: int, share: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, size)
    shift = torch.randn(size)
    seen = [float(max_sliced_distance(x, x + shift)) / float(shift.norm()) for _ in range(20)]
    assert sum(seen) / len(seen) == pytest.approx(share, rel=0.15)
    assert float(max_sliced_distance(x, x + shift, optimise=1)) >= float(shift.norm()) * 0.9999


def test_the_gradient_is_that_of_differences_and_finite_at_no_distance() -> None:
    torch.manual_seed(0)
    x, y = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    directions = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=0)
    assert torch.autograd.gradcheck(lambda a, b: sliced_distances(a, b, directions), (x, y))
    for paired in (False, True):
        same = x.detach().clone().requires_grad_()
        found = distance_of(same, same.detach().clone(), DistanceOptions(paired=paired))
        found.backward()
        assert found.item() == 0.0
        assert same.grad is not None
        assert bool(same.grad.isfinite().all())


def test_a_relative_distance_does_not_depend_on_the_scale() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 3, 3)
    y = x + 0.1 * torch.randn(8, 2, 3, 3)
    options = DistanceOptions()
    for scale in (1e-3, 7.0):
        found = []
        for times in (1.0, scale):
            torch.manual_seed(1)
            found.append(float(distance_of(times * x, times * y, options)))
        assert found[0] == pytest.approx(found[1], rel=1e-4)
    paired = float(distance_of(x, y, DistanceOptions(paired=True)))
    assert paired == pytest.approx(float((x - y).square().sum() / x.square().sum()))
    assert found[0] <= math.sqrt(paired)
    published = DistanceOptions(optimise=0, relative=False)
    torch.manual_seed(1)
    bare = float(distance_of(x, y, published))
    torch.manual_seed(1)
    assert bare == pytest.approx(float(max_sliced_distance(x.flatten(1), y.flatten(1))))


def test_it_is_computed_in_full_precision_while_a_network_trains_in_less() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 300)
    y, options = x + 0.01 * torch.randn(16, 300), DistanceOptions(optimise=0)
    found = []
    for reduced in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            found.append(float(distance_of(x, y, options)))
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def network() -> Network:
    net = chain().copy()
    net.get_parameter("two.bn2.weight").data.zero_()  # this block does nothing
    net.get_parameter("two.bn2.bias").data.zero_()
    return net


def test_the_criterion_and_the_penalty_compare_input_and_output_of_blocks(
    network: Network,
) -> None:
    model, seen = network, {}
    torch.manual_seed(1)
    images = torch.randn(6, 1, 8, 8)
    nodes = {b.name: b for b in network.blocks if b.removable}
    options = DistanceOptions(paired=True)

    def keep(_: object, values: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        seen.update(values)
        return block_distance(network, options)(network, values)

    copy = model.copy()
    fit(
        copy, [(images, torch.zeros(6).long())], epochs=1, penalty=keep, at=list(nodes),
        recipe={"lr": 1e-9, "precision": "fp32"},
    )  # fmt: skip
    assert set(seen) == set(nodes)
    scores = shoal.score(network, [images], "transport?paired=true")
    assert scores["two"] == pytest.approx(0.0, abs=1e-9)
    assert min(scores, key=scores.__getitem__) == "two"
    captured: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(f"{name}.relu_1").register_forward_hook(
            lambda _, __, output, name=name: captured.__setitem__(name, output)
        )
        for name in ("two", "three")
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    x, y = captured["two"], captured["three"]
    expected = float((y - x).square().sum() / x.square().sum())
    assert scores["three"] == pytest.approx(expected, rel=1e-4)


def test_the_seed_decides_and_the_global_state_does_not(network: Network) -> None:
    batches = [torch.randn(6, 1, 8, 8)]
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(found))
        found.append(dict(shoal.score(network, batches, f"transport?seed={seed}&optimise=0")))
    assert found[0] == found[1] != found[2]
