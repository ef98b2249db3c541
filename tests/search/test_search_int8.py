"""The result in int8: what it is calibrated on, its figures, and how a run keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import shoal
import small_runs
from shoal.errors import ConfigError, ShoalError
from shoal.network.inputs import as_call, tensors_of
from shoal.report import read_run
from shoal.runtimes import Runner, Runtime, find_runtime
from shoal.search import ending
from shoal.search.ending import end_of, folded
from shoal.search.int8 import Int8Maker
from shoal.tasks import find_task
from shoal.training import evaluate


class Read:
    """Batches that count how often they are read."""

    def __init__(self, batches: Any) -> None:
        self.batches = list(batches)
        self.times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return iter(self.batches)


class Rounded(Runtime):
    """Quantizes by leaving the network as it is, and remembers what it was calibrated on."""

    name, title, version, int8 = "rounded", "Rounded", "1", ".rnd"
    seen: list[torch.Tensor]

    def make(self, network: Any, inputs: Any, *, check: bool = False) -> Runner:
        return find_runtime("eager").make(network, inputs)

    def quantize(self, network: nn.Module, samples: Sequence[Any], path: Path) -> Runner:
        path.write_text("int8")
        path.with_suffix(".bin").write_text("weights")
        Rounded.seen = [as_call(batch)[0][0] for batch in samples]
        return self.make(network, samples[0])


class Refuses(Rounded):
    """Cannot quantize any network."""

    name, title = "refuses", "Refuses"

    def quantize(self, network: nn.Module, samples: Sequence[Any], path: Path) -> Runner:
        raise ShoalError("not this one")


class Tangled(nn.Module):
    """Gives its answers among other outputs of the same form."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.last = nn.Linear(64, 10), nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        hidden = self.hidden(x.flatten(1)).relu()
        return {"hidden": hidden, "found": (self.last(hidden),)}


class Second(type(find_task())):
    """Finds the output of a `Tangled` by the names that it has."""

    def output(self, returned: Any) -> torch.Tensor:
        return returned["found"][0]


class Rounding(Rounded):
    """Rounds nothing, and gives all outputs by name, as files do."""

    name = "rounding"

    def make(self, network: Any, inputs: Any, *, check: bool = False) -> Runner:
        runner = super().make(network, inputs)

        class Named(Runner):
            device, threads = runner.device, runner.threads
            ready = runner.ready

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                outputs = tensors_of(runner(*args, **kwargs))
                return {f"output_{i}": value for i, value in enumerate(outputs)}

        return Named()


def test_a_measure_of_the_users_is_given_the_networks_own_outputs(tmp_path: Path) -> None:
    data = small_runs.digits()
    network = shoal.capture(Tangled().eval(), data.example_inputs(2))

    def quality(module: Any, loader: Any) -> float:
        place = next(module.parameters()).device
        hits = [(module(x.to(place))["found"][0].argmax(1) == y).double().mean() for x, y in loader]
        return 100.0 * float(torch.stack(hits).mean())

    maker = Int8Maker(data.train, data.val, None, quality, tmp_path, Second())
    figures, _ = maker.make(Rounding(), network, network)
    assert figures.top1_val == quality(network, data.val)
    assert figures.agreement == 100.0


def test_a_measure_that_fails_in_int8_becomes_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, network = small_runs.digits(), small_runs.captured()

    def quality(module: Any, loader: Any) -> float:
        return 100.0 * module.fc.bias.mean()  # looks into the network

    monkeypatch.setattr(ending, "open_runtime", lambda name: Rounded())
    maker = Int8Maker(data.train, data.val, None, quality, tmp_path)
    pair = {"dense": network, "result": network}
    found = ending._quantized(maker, ["rounded"], pair, lambda text: None)
    assert found.figures == []
    (note,) = found.notes
    assert note.startswith("no int8 in Rounded: its quality cannot be measured: AttributeError")
    assert not list(tmp_path.iterdir())


def test_calibration_sees_training_images_and_nothing_else(tmp_path: Path) -> None:
    data = small_runs.digits()
    train, val, test = Read(data.train.plain()), Read(data.val), Read(data.test)
    network = folded(small_runs.captured())
    counts = []

    def quality(module: Any, loader: Read) -> float:
        counts.append((train.times, val.times, test.times))
        return evaluate(module, loader).top1

    maker = Int8Maker(train, val, test, quality, tmp_path)
    figures, runners = maker.make(Rounded(), network, network)
    assert counts == [(1, 0, 0), (1, 1, 0)]  # before each evaluation, the only readings of these
    assert torch.equal(torch.cat(Rounded.seen), torch.cat([x for x, _ in train.batches]))
    assert set(runners) == {"dense_int8", "result_int8"}
    assert {file.name for file in tmp_path.iterdir()} == {"rounded.rnd", "rounded.bin"}
    assert (figures.file, figures.bytes, figures.samples) == ("rounded.rnd", 11, 250)
    assert figures.agreement == 100.0
    assert figures.top1_val == evaluate(network, data.val).top1
    assert figures.top1_test == evaluate(network, data.test).top1


@pytest.mark.long
def test_the_end_times_int8_beside_float_and_notes_what_cannot_be_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"rounded": Rounded, "refuses": Refuses}
    monkeypatch.setattr(ending, "installed", lambda: list(kinds))
    monkeypatch.setattr(
        ending, "open_runtime", lambda name: kinds.get(name, type(find_runtime("eager")))()
    )
    made = ending.InRuntime
    monkeypatch.setattr(
        ending, "InRuntime", lambda name, *given: made(kinds.get(name, lambda: name)(), *given)
    )
    for name in ("_DECIDES", "_OTHER"):
        monkeypatch.setattr(ending, name, {"min_seconds": 0.0, "repeats": 3, "warmup": 1})
    data, network = small_runs.digits(), small_runs.captured()
    maker = Int8Maker(data.train, data.val, None, lambda *_: 90.0, tmp_path)
    found = end_of(network, network, data.example_inputs, batches=(2,), int8=maker)
    four = {"dense_folded", "result_merged", "dense_int8", "result_int8"}
    names = {(one["runtime"], one["batch"]): set(one["latency"]) for one in found.latency.runtimes}
    assert names["rounded", 1] == names["rounded", 2] == four
    assert names["eager", 2] == {"dense", "result", "dense_folded", "result_merged"}
    assert found.int8 is not None
    assert [one.runtime for one in found.int8] == ["rounded"]
    assert found.notes == ("no int8 in Refuses: not this one",)


def test_a_run_keeps_the_files_and_a_finished_one_takes_them_later(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = small_runs.run(folder, remove=1)
    assert first.int8 is None
    assert not (folder / "int8").exists()
    second = small_runs.run(folder, remove=1, int8=True)
    assert second.int8 == (small_runs.INT8,)
    assert (folder / "int8" / "eager.int8").read_bytes() == b"weights"
    again = read_run(folder)
    assert again.int8 == (small_runs.INT8,)
    told = "no int8 in OpenVINO: no"
    in_memory = small_runs.run(remove=1, int8=True)
    assert [found.notes.count(told) for found in (again, second, in_memory)] == [1, 1, 1]
    before = (folder / "result.json").stat().st_mtime_ns
    small_runs.run(folder, remove=1, int8=True)
    assert (folder / "result.json").stat().st_mtime_ns == before  # nothing is measured twice


def test_what_cannot_be_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.search.compress.quantizers", lambda: [])
    from shoal.search.compress import method_of
    from shoal.search.settings import Settings

    method_of(Settings.of("easier"))
    with pytest.raises(ConfigError, match="a runtime that can quantize"):
        method_of(Settings.of("easier", int8=True))
