"""A pass of observers leaves the network as it was, whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from shoal.errors import CaptureError, ConfigError
from shoal.importance import score
from shoal.importance.entropy import Entropy
from shoal.network import Network, capture
from shoal.passes.batches import observe
from shoal.surgery import LineMoments, fit_lines


@cache
def captured() -> Network:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3),
        nn.GELU(),
    )  # fmt: skip
    model.train()
    model[1].eval()  # a frozen norm
    return capture(model, torch.randn(2, 3, 8, 8))


def make_network() -> Network:
    network = captured().copy()
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    return network


def look(network: Network) -> dict[str, object]:
    return {
        "modes": [module.training for module in network.modules()],
        "state": {k: v.clone() for k, v in network.state_dict().items()},
        "gradients": {k: p.grad.clone() for k, p in network.named_parameters()},  # type: ignore[union-attr]
        "learns": [p.requires_grad for p in network.parameters()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in network.modules()
        ],
        "plan": network.plan.to_dict(),
        "random": torch.get_rng_state(),
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def batches() -> list[Tensor]:
    return list(torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(5))


def test_scoring_leaves_the_network_untouched() -> None:
    network = make_network()
    before, data = look(network), batches()
    score(network, data)
    fit_lines(network, data)
    assert same(look(network), before)


def test_what_a_module_keeps_from_the_pass_can_take_part_in_training() -> None:
    network = make_network()
    kept: list[Tensor] = []
    handle = network.get_submodule("0").register_forward_hook(lambda m, i, o: kept.append(o))
    score(network, batches())
    handle.remove()
    assert not any(value.is_inference() for value in kept)


def interrupted() -> object:
    yield batches()[0]
    raise KeyboardInterrupt


def broken() -> object:
    yield batches()[0]
    yield torch.ones(2, 7, 8, 8)


@pytest.mark.parametrize(
    ("data", "error"), [(interrupted, KeyboardInterrupt), (broken, CaptureError)]
)
def test_an_interruption_leaves_the_network_untouched(
    data: Callable[[], object], error: type[BaseException]
) -> None:
    network = make_network()
    before = look(network)
    with pytest.raises(error):
        observe(network, data(), [Entropy(), LineMoments()])  # type: ignore[arg-type]
    assert same(look(network), before)


def test_an_observer_that_cannot_attach_leaves_no_hooks_of_others() -> None:
    network = make_network()
    before = look(network)
    with pytest.raises(ConfigError, match="site 'nowhere' has no rectifier"):
        observe(network, batches(), [Entropy(), LineMoments(["nowhere"])])
    assert same(look(network), before)


def test_one_pass_serves_all_observers() -> None:
    network, data, passes = make_network(), batches(), 0

    def count() -> object:
        nonlocal passes
        passes += 1
        yield from data

    entropy, moments = Entropy(), LineMoments()
    assert observe(network, count(), [entropy, moments]) == 12  # type: ignore[arg-type]
    assert passes == 1
    assert entropy.scores() == score(network, data)
    alone = fit_lines(network, data)
    for name, line in moments.lines().items():
        assert torch.equal(line.slope, alone[name].slope)
        assert torch.equal(line.intercept, alone[name].intercept)


def test_observers_start_anew_on_each_pass() -> None:
    network, data = make_network(), batches()
    entropy, moments = Entropy(), LineMoments()
    observe(network, [3 * data[0]], [entropy, moments])
    observe(network, data, [entropy, moments])
    assert entropy.scores() == score(network, data)
    assert torch.equal(moments.lines()["2"].slope, fit_lines(network, data)["2"].slope)


def test_progress_counts_batches() -> None:
    heard: list[tuple[int, int]] = []
    score(make_network(), batches(), progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
