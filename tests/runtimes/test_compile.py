"""Compiled networks: each compiled by itself, once for the shapes of its inputs."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.errors import ConfigError, ShoalError
from shoal.measure import InRuntime, measure_latency
from shoal.runtimes import find_runtime
from shoal.runtimes.compile import Compiled

pytestmark = [pytest.mark.compiles, pytest.mark.usefixtures("every_compilation_counts")]
QUICK = {"repeats": 3, "warmup": 1, "min_seconds": 0.0}
_REAL = torch.compile


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | torch.SymInt, ...]]:
    """The shapes of the inputs of all graphs that a quick compiler compiles."""
    found: list[tuple[int | torch.SymInt, ...]] = []

    def record(module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.extend(tuple(v.shape) for v in inputs if not isinstance(v, nn.Parameter))
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(_REAL, backend=record))
    monkeypatch.setattr(Compiled, "lacking", lambda self: None)
    return found


class Breaking(nn.Module):
    """A network that is compiled in two parts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x)


@pytest.mark.long
def test_it_is_compiled_once_for_each_batch_size(sizes: list[Any]) -> None:
    network = shoal.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4))
    runners = InRuntime("compile", {"a": network}, torch.randn(2, 4))
    for size in (2, 3, 2, 3):
        found = runners.measure(torch.randn(size, 4), "a", **QUICK)
        assert found.latencies["a"].batch_size == size
    assert sizes == [(2, 4), (3, 4)]


@pytest.mark.parametrize("make", [lambda size: nn.Linear(size, size), Breaking])
def test_many_in_a_process_are_compiled_each(
    sizes: list[Any], make: Callable[[int], nn.Module]
) -> None:
    made = []
    with torch._dynamo.config.patch(error_on_recompile=False):  # parts share code
        for size in range(4, 14):
            x, network = torch.randn(3, size), make(size)
            made.append(network)
            runner = find_runtime("compile").make(network, x, check=True)
            torch.testing.assert_close(runner(x), network(x))
    assert len(sizes) == 10 * (2 if make is Breaking else 1)


def test_images_are_run_in_channels_last_and_the_network_stays_as_it_was(sizes: list[Any]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    runner = find_runtime("compile", threads=1).make(net, x, check=True)
    measure_latency({"a": runner}, x, **QUICK)
    assert (runner.device, runner.threads) == ("cpu", 1)
    assert net.training
    assert net[0].weight.is_contiguous()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert sizes.count((2, 3, 8, 8)) == 1


def test_a_network_goes_with_its_runner(sizes: list[Any]) -> None:
    network = shoal.capture(nn.Linear(4, 4), torch.randn(2, 4))
    runner = find_runtime("compile").make(network, torch.randn(2, 4))
    runner(torch.randn(2, 4))
    gone = weakref.ref(network)
    del network, runner
    gc.collect()
    assert gone() is None


def test_what_cannot_be_compiled_or_called_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(module: object, inputs: object) -> Any:
        raise NotImplementedError("no such operation")

    monkeypatch.setattr(torch, "compile", partial(_REAL, backend=fail))
    runtime = Compiled()
    with pytest.raises(ShoalError, match="cannot compile the network"):
        runtime.make(nn.Linear(4, 4), torch.randn(2, 4), check=True)
    with pytest.raises(ConfigError, match="cannot be called"):
        runtime.make(nn.Linear(4, 4), torch.randn(2, 4))(torch.randn(2, 3))


def test_what_is_lacking_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    lacking = Compiled().lacking()
    assert lacking is not None
    assert "no-such-compiler" in lacking
    assert "\n" not in lacking
    monkeypatch.setattr("shoal.runtimes.compile.shutil.which", lambda name: "/bin/" + name)
    monkeypatch.setattr("shoal.runtimes.compile.sysconfig.get_path", lambda name: "/nowhere")
    assert "Python.h" in str(Compiled().lacking())


@pytest.mark.slow
def test_inductor_gives_the_outputs_at_every_batch_size() -> None:
    if Compiled().lacking():
        pytest.skip("there is no compiler here")
    import torch._inductor.config as inductor

    net = shoal.capture(shoal.models.digits_resnet().eval(), torch.randn(2, 1, 8, 8))
    compiler = {"cpp.cxx": (None, os.environ.get("CXX", "g++"))}  # another test may have hidden it
    with torch._dynamo.config.patch(error_on_recompile=True), inductor.patch(compiler):
        runner = find_runtime("compile").make(net, torch.randn(1, 1, 8, 8), check=True)
        for size in (1, 32):
            x = torch.randn(size, 1, 8, 8)
            torch.testing.assert_close(runner(x), net(x), atol=1e-5, rtol=1e-4)
