"""Latency: figures under a held clock, and models that come back unchanged."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import nn

from shoal.errors import ConfigError
from shoal.measure import Latency, latency_ratio, measure_latency
from shoal.runtimes import find_runtime


class Clocked(nn.Module):
    """A model whose call advances a shared clock by its cost in seconds."""

    def __init__(self, clock: list[float], cost: float) -> None:
        super().__init__()
        self.clock, self.cost = clock, cost
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.clock[0] += self.cost
        return self.fc(x)


def test_figures_have_the_units_they_name() -> None:
    clock = [0.0]
    models = {"net": Clocked(clock, 0.01), "dense": Clocked(clock, 0.03)}
    found = measure_latency(
        models, torch.zeros(8, 4), repeats=6, min_seconds=0, clock=lambda: clock[0]
    )
    assert found["net"].median_ms == pytest.approx(10.0)
    assert found["dense"].q3_ms == pytest.approx(30.0)
    assert found["net"].images_per_second == pytest.approx(800.0)
    assert found["net"].batch_size == 8
    assert found["net"].samples == 6
    assert found["net"].device == "cpu"
    ratio = latency_ratio(found["dense"], found["net"])
    assert ratio.median == pytest.approx(3.0)
    assert ratio.settled
    assert json.loads(json.dumps(found["net"].to_dict()))["median_ms"] == pytest.approx(10.0)


def test_milliseconds_and_their_ratio_agree() -> None:
    clock, rng = [0.0], random.Random(0)

    class Noisy(Clocked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.clock[0] += self.cost * rng.lognormvariate(0.0, 0.5) * (1.0 + self.clock[0])
            return self.fc(x)

    models = {name: Noisy(clock, cost) for name, cost in (("a", 0.01), ("b", 0.02), ("c", 0.05))}
    found = measure_latency(
        models, torch.zeros(1, 4), repeats=23, min_seconds=0, clock=lambda: clock[0]
    )
    for one in found.values():
        assert one.q1_ms <= one.median_ms <= one.q3_ms
        for other in found.values():
            ratio = latency_ratio(one, other)
            assert ratio.median == pytest.approx(one.median_ms / other.median_ms)
            assert ratio.low <= ratio.median <= ratio.high
            assert ratio.pairs == 23


def test_a_drift_of_both_casts_no_doubt_on_their_ratio() -> None:
    clock = [0.0]

    class Slowing(Clocked):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.clock[0] += self.cost * (1.0 + self.clock[0])
            return self.fc(x)

    models = {"net": Slowing(clock, 0.01), "dense": Slowing(clock, 0.03)}
    found = measure_latency(
        models, torch.zeros(1, 4), repeats=20, min_seconds=0, clock=lambda: clock[0]
    )
    assert not found["net"].trusted
    assert "not steady" in found["net"].to_dict()["doubt"]
    assert str(found["net"]).endswith("not to be trusted")
    ratio = latency_ratio(found["dense"], found["net"])
    assert ratio.trusted
    assert ratio.median == pytest.approx(3.0, rel=0.02)


def test_a_busy_machine_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def watch(threads: int) -> Callable[[], Callable[[], str]]:
        asked.append(threads)
        return lambda: lambda: "the machine was busy"

    monkeypatch.setattr("shoal.measure.latency.watch", watch)
    found = measure_latency(
        {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}, torch.zeros(1, 4),
        repeats=3, min_seconds=0, threads=1,
    )  # fmt: skip
    assert asked == [1]
    assert found["a"].doubt == found["b"].doubt == "the machine was busy"
    assert found["a"].to_dict()["trusted"] is False
    assert latency_ratio(found["a"], found["b"]).doubt == "the machine was busy"


def test_more_work_takes_longer() -> None:
    # The one measurement with a real clock: eight times the work, and only "longer" is claimed.
    one = nn.Linear(512, 512)
    eight = nn.Sequential(*(nn.Linear(512, 512) for _ in range(8)))
    found = measure_latency(
        {"one": one, "eight": eight}, torch.zeros(64, 512), repeats=7, min_seconds=0, threads=1
    )
    assert latency_ratio(found["eight"], found["one"]).median > 1.3


class Everything(nn.Module):
    """Parameters of several ranks, tied ones, buffers that change, recurrent weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.volume = nn.Parameter(torch.randn(1, 2, 2, 2, 2))
        self.tied = nn.Conv2d(3, 4, 3, padding=1)
        self.tied.weight = self.conv.weight
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.lstm = nn.LSTM(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.form = x.is_contiguous(memory_format=torch.channels_last)
        self.weight_form = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        self.modes = [module.training for module in self.modules()]
        self.inference = torch.is_inference_mode_enabled()
        y = self.drop(self.norm(self.conv(x) + self.tied(x)))
        return self.lstm(y.mean((2, 3)))[0]


def test_models_come_back_unchanged() -> None:
    model = Everything()
    model.norm.eval()
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    objects = [(p, p.data_ptr(), p.stride(), p.grad) for p in model.parameters()]
    buffers = dict(model.named_buffers())
    modes = [module.training for module in model.modules()]
    x = torch.randn(2, 3, 5, 5)
    kept = x.clone()

    measure_latency({"net": model, "again": model}, x, repeats=3, min_seconds=0, clock=ticking())

    assert model.form
    assert model.weight_form
    assert not any(model.modes)
    assert model.inference
    assert [module.training for module in model.modules()] == modes
    for parameter, (same, pointer, stride, grad) in zip(model.parameters(), objects, strict=True):
        assert parameter is same
        assert parameter.data_ptr() == pointer
        assert parameter.stride() == stride
        assert parameter.grad is grad
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(x, kept)
    assert x.is_contiguous()
    assert model.tied.weight is model.conv.weight
    model(x).sum().backward()  # and it still trains


def ticking():
    ticks = count()
    return lambda: next(ticks) * 0.01


def test_a_model_that_fails_comes_back_too() -> None:
    class Failing(Everything):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise RuntimeError("wrong shape\nand much more text")

    model = Failing()
    stride = model.conv.weight.stride()
    with pytest.raises(ConfigError, match=r"'net' cannot be called .*\(wrong shape\): pass inputs"):
        measure_latency({"net": model}, torch.zeros(2, 3, 5, 5))
    assert model.training
    assert model.conv.weight.stride() == stride
    assert model.calls == 0


def test_memory_format_can_be_left_alone() -> None:
    model = Everything()
    measure_latency(
        {"net": model},
        torch.zeros(2, 3, 5, 5),
        repeats=3,
        min_seconds=0,
        channels_last=False,
        clock=ticking(),
    )
    assert not model.form
    assert not model.weight_form


def test_threads_are_set_for_the_measurement_only() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def call(x: torch.Tensor) -> None:
        seen.append(torch.get_num_threads())

    found = measure_latency(
        {"call": call}, torch.zeros(1), repeats=3, min_seconds=0, threads=1, clock=ticking()
    )
    assert set(seen) == {1}
    assert found["call"].threads == 1
    assert torch.get_num_threads() == before


def test_different_numbers_of_threads_are_not_measured_side_by_side() -> None:
    x, net = torch.zeros(2, 4), nn.Linear(4, 4)
    one, two = (find_runtime("eager", threads=n).make(net, x) for n in (1, 2))
    with pytest.raises(ConfigError, match="has one number of threads at a time") as error:
        measure_latency({"one": one, "two": two}, x)
    assert "\n" not in str(error.value)
    found = measure_latency(
        {"one": one, "net": net}, x, threads=1, repeats=3, min_seconds=0, clock=ticking()
    )
    assert [latency.threads for latency in found.values()] == [1, 1]


def test_options_beside_a_runtime_that_is_made_are_its_own_or_refused() -> None:
    x, models = torch.zeros(2, 4), {"net": nn.Linear(4, 4)}
    made = find_runtime("eager", threads=1, device="cpu")
    for name, value in (("threads", 2), ("device", "meta"), ("channels_last", False)):
        with pytest.raises(ConfigError, match=rf"as Eager\({name}={value!r}\)"):
            measure_latency(models, x, runtime=made, **{name: value})
    for own in ({}, {"threads": 1, "device": "cpu"}, {"device": torch.device("cpu")}):
        assert find_runtime(made, **own) is made


def test_inputs_of_one_model_are_not_those_of_another() -> None:
    seen: list[float] = []

    def spoils(x: torch.Tensor) -> None:
        x.fill_(7.0)

    measure_latency(
        {"spoils": spoils, "looks": lambda x: seen.append(float(x.max()))},
        torch.zeros(2, 2),
        repeats=3,
        min_seconds=0,
        clock=ticking(),
    )
    assert set(seen) == {0.0}


def test_an_exported_module_can_be_measured() -> None:
    program = torch.export.export(nn.Linear(3, 3).eval(), (torch.zeros(2, 3),), strict=False)
    found = measure_latency(
        {"net": program.module(check_guards=False)},
        torch.zeros(2, 3),
        repeats=3,
        min_seconds=0,
        clock=ticking(),
    )
    assert isinstance(found["net"], Latency)


def test_bad_options_get_one_clear_line() -> None:
    model, x = {"net": nn.Linear(2, 2)}, torch.zeros(1, 2)
    with pytest.raises(ConfigError, match="threads is 0: give at least 1"):
        measure_latency(model, x, threads=0)
    with pytest.raises(ConfigError, match="no device 'nowhere'"):
        measure_latency(model, x, device="nowhere")
    with pytest.raises(ConfigError, match="nothing to time"):
        measure_latency({}, x)
    with pytest.raises(ConfigError, match="batch dimension"):
        measure_latency(model, torch.tensor(1.0))


def test_latencies_of_different_runs_are_no_pairs() -> None:
    one = Latency(1.0, 1.0, 1.0, 2, 1, 1, "cpu", 1, (1.0, 1.0))
    other = Latency(1.0, 1.0, 1.0, 3, 1, 1, "cpu", 1, (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="measure both in the same call"):
        latency_ratio(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_times_are_those_of_the_device() -> None:
    model = nn.Linear(4096, 4096)
    start = time.perf_counter()
    found = measure_latency(
        {"net": model}, torch.zeros(4096, 4096), repeats=5, min_seconds=0, device="cuda"
    )
    passed = time.perf_counter() - start
    latency = found["net"]
    assert latency.device == "cuda:0"
    assert latency.median_ms > 0.05  # 137 GFLOP cannot be done faster than that
    assert latency.median_ms * latency.inner * latency.samples < 1e3 * passed
    assert next(model.parameters()).device.type == "cpu"
