"""What holds on a CPU holds on a GPU: the laws that depend on where tensors are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import shoal
from shoal.measure import measure_latency
from shoal.network import Network
from shoal.runtimes import find_runtime

DEVICE = "cuda"

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.compiles,
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning"),
]


def images(batch: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images(), torch.arange(32) % 10)]


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    model = shoal.models.resnet18_cifar().to(DEVICE).eval()
    return shoal.capture(model, images(2).to(DEVICE))


def test_capture_is_equal_to_the_bit() -> None:
    torch.manual_seed(0)
    model = shoal.models.resnet18_cifar().to(DEVICE).eval()
    x = images().to(DEVICE)
    with torch.no_grad():
        assert torch.equal(shoal.capture(model, x[:2])(x), model(x))


def test_entropy_is_the_cpus(network: Network) -> None:
    here, there = (
        shoal.score(net, batches(), criterion="entropy") for net in (network, network.copy().cpu())
    )
    assert list(here) == list(there)
    assert all(abs(here[name] - there[name]) < 1e-3 for name in here)


@pytest.mark.parametrize("criterion", ["line_loss", "collapse_loss", "cka", "taylor"])
def test_criteria_score_there(network: Network, criterion: str) -> None:
    scores = shoal.score(network, batches(), criterion=criterion)
    assert scores
    assert all(torch.tensor(score).isfinite() for score in scores.values())


def test_merging_changes_nothing_and_saving_keeps_it(network: Network, tmp_path: Path) -> None:
    changed = network.copy()
    shoal.linearize_(changed, [site.name for site in changed.sites[::2]], loader=batches())
    before = changed(images().to(DEVICE))
    report = shoal.merge_(changed, policy="always")
    assert report.max_rel_error <= 1e-5
    after = changed(images().to(DEVICE))
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    shoal.save(changed, tmp_path)
    assert torch.equal(shoal.load(tmp_path).to(DEVICE)(images().to(DEVICE)), after)


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("runtime", ["eager", "compile"])
def test_a_runtime_gives_the_networks_outputs(network: Network, runtime: str, batch: int) -> None:
    made = find_runtime(runtime, device=DEVICE).make(network, images(batch), check=True)
    assert made.device.startswith("cuda")
    for seed in range(4):  # a CUDA graph is recorded in the second call, and replayed afterwards
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = network(x.to(DEVICE))
        error = (made(x.to(DEVICE)) - expected).abs().max() / expected.abs().max()
        assert error <= 1e-3  # TF32 may round otherwise


def test_latency_is_that_of_the_device(network: Network) -> None:
    found = measure_latency({"net": network}, images(), repeats=6, min_seconds=0.0)["net"]
    assert found.device.startswith("cuda")
    assert 0.0 < found.median_ms < 1000.0


def test_a_search_there_gives_a_result_that_a_cpu_can_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = shoal.compress(
        shoal.models.digits_resnet(in_channels=3),
        batches(),
        batches(),
        max_drop=100.0,
        remove=2,
        dense_epochs=1,
        final_epochs=1,
        device=DEVICE,
        out=tmp_path,
    )
    assert result.removed >= 1
    assert next(result.model.parameters()).device.type == torch.device(DEVICE).type
    x = images(4)
    expected = result.merged(x.to(DEVICE)).cpu()
    found = shoal.load(tmp_path).cpu()(x)
    assert (found - expected).abs().max() <= 1e-3 * expected.abs().max()
