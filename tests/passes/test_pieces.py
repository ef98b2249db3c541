"""Batches in pieces: when they are cut, and that what is gathered is what whole batches give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.data.batch import Batch, split_batch
from shoal.models import digits_resnet
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.passes import pieces
from shoal.passes.pieces import in_pieces, samples_at_once
from shoal.surgery.collapse import fit_stretches

SIZE = 8 * 8 * 16 * 4  # bytes of the largest tensor for one sample


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return shoal.capture(digits_resnet().eval(), torch.randn(2, 1, 8, 8))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def at_once(network: Network, batch: Tensor) -> int:
    with eval_mode(network):
        return samples_at_once(network, split_batch(batch))


def test_a_piece_holds_what_stays_small(
    network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert at_once(network, images) == 50
    monkeypatch.setattr(pieces, "_LARGEST", 7 * SIZE)
    assert at_once(network, images) == 7
    monkeypatch.setattr(pieces, "_LARGEST", SIZE - 1)
    assert at_once(network, images) == 1


def test_pieces_are_nearly_equal_and_make_up_the_batch(images: Tensor) -> None:
    batch = Batch((images,), {"mask": images}, torch.arange(50))
    parts = list(in_pieces(batch, 12))
    assert [(first, part.size) for first, part in parts] == [
        (0, 10), (10, 10), (20, 10), (30, 10), (40, 10),
    ]  # fmt: skip
    for values in zip(*((*part.inputs, part.target) for _, part in parts), strict=True):
        joined = torch.cat([value for value in values if value is not None])
        assert torch.equal(joined, images) or torch.equal(joined, torch.arange(50))
    assert [part for _, part in in_pieces(batch, 50)] == [batch]


def test_samples_that_depend_on_each_other_stay_together(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_LARGEST", 1)
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    assert at_once(shoal.capture(model.eval(), images[:2]), images) == 50


def test_where_a_sample_alone_is_refused_batches_stay_whole(images: Tensor) -> None:
    norm, maps = (kind(8, track_running_stats=False) for kind in (nn.BatchNorm1d, nn.BatchNorm2d))
    vectors = nn.Sequential(nn.Linear(64, 8), norm, nn.ReLU(), nn.Linear(8, 3))
    layers = [nn.Conv2d(1, 8, 8), maps, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)]
    for model, x in ((vectors, images.flatten(1)), (nn.Sequential(*layers), images)):
        network = shoal.capture(model.eval(), x[:32])
        assert torch.equal(network(x[:9]), model(x[:9]))
        assert at_once(network, x) == 50
        assert shoal.score(network, [x]).samples == 50


def test_what_does_not_hold_one_row_for_each_sample_stays_together(
    network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_LARGEST", 1)
    with eval_mode(network):
        assert samples_at_once(network, Batch((images,), {"mask": images[:1]}, None)) == 50


def test_trying_out_leaves_the_random_state_alone(
    network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_LARGEST", 1)
    before = torch.get_rng_state()
    at_once(network, images)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("pooling", ["all", "batch"])
def test_entropy_is_that_of_whole_batches(
    network: Network, images: Tensor, pooling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = [images[:30], images[30:]]
    whole = shoal.score(network, loader, "entropy", samples=45, pooling=pooling)
    monkeypatch.setattr(pieces, "_LARGEST", 7 * SIZE)
    assert shoal.score(network, loader, "entropy", samples=45, pooling=pooling) == whole


def test_the_network_sees_pieces_where_every_observer_lets_it(
    network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_LARGEST", 25 * SIZE)
    sizes: list[int] = []
    hook = network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    try:
        shoal.score(network, [images], "entropy")
        assert sizes[-2:] == [25, 25]
        shoal.score(network, [images], "entropy", pooling="batch")
        assert sizes[-1] == 50
    finally:
        hook.remove()


def test_lines_are_fitted_to_the_same_positions(
    network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines() -> list[Tensor]:
        moments = shoal.surgery.LineMoments(positions=100)
        shoal.passes.observe(network, [images, images.flip(0)], [moments])
        return [part for line in moments.lines().values() for part in (line.slope, line.intercept)]

    whole = lines()
    monkeypatch.setattr(pieces, "_LARGEST", 7 * SIZE)
    for one, other in zip(lines(), whole, strict=True):
        torch.testing.assert_close(one, other)


def test_layers_are_fitted_to_the_same_positions(
    network: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def residuals() -> list[float]:
        fitted = fit_stretches(network, network.stretches, [images], rows=lambda _: 600)
        return [layer.residual for layer in fitted.values()]

    whole = residuals()
    monkeypatch.setattr(pieces, "_LARGEST", 7 * SIZE)
    assert residuals() == pytest.approx(whole, rel=1e-5)
