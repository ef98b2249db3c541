"""The code in CONTRIBUTING.md runs, and does what the page says of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal.importance import criteria
from shoal.network import ops
from shoal.runtimes import RUNTIMES
from shoal.search.method import methods
from shoal.targets import import_target
from shoal.tasks import tasks
from shoal.training import evaluate
from small_runs import FakeGauge

PAGE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (criteria, methods, tasks, RUNTIMES):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    for table in ("_TABLE", "_TYPES"):
        monkeypatch.setattr(ops, table, dict(getattr(ops, table)))


def written(section: str, folder: Path) -> Path:
    """Return a file with the code of a section of the page."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    path = folder / f"{section.rpartition(' ')[2]}_of_mine.py"
    path.write_text(code)
    return path


def imported(path: Path, name: str) -> ModuleType:
    return sys.modules[import_target(f"{path}:{name}").__module__]


def network_of(*layers: nn.Module) -> shoal.Network:
    torch.manual_seed(0)
    return shoal.capture(nn.Sequential(*layers).eval(), torch.randn(2, 4))


def test_a_criterion(tmp_path: Path) -> None:
    path = written("Add a criterion", tmp_path)
    network = network_of(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU())
    data = list(torch.randn(11, 4).split(4))
    outputs: list[Tensor] = []
    handle = network.get_submodule("3").register_forward_hook(lambda m, i, o: outputs.append(o))
    with torch.no_grad():
        network(torch.cat(data))
    handle.remove()
    for option, wanted in (("value", outputs[0]), ("magnitude", outputs[0].abs())):
        scores = shoal.score(network, data, f"{path}:MeanOutput?of={option}")
        assert scores.criterion == "mean_output"
        assert scores.samples == 11
        assert scores["3"] == pytest.approx(float(wanted.mean()), rel=1e-6)


def test_a_task(tmp_path: Path) -> None:
    path = written("Add a task", tmp_path)
    grades = [(torch.eye(4), torch.tensor([0, 2, 0, 3]))]
    found = evaluate(nn.Identity(), grades, task=f"{path}:Ordinal")
    assert (found.name, found.quality) == ("near grades", 75.0)
    assert evaluate(nn.Identity(), grades, task=f"{path}:Ordinal?within=2").quality == 100.0
    with pytest.raises(shoal.ShoalError, match="grades go from 0 to 3"):
        evaluate(nn.Identity(), [(torch.eye(4), torch.arange(1, 5))], task="ordinal")


def test_a_method(tmp_path: Path) -> None:
    path = written("Add a method", tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softplus()
    )
    batches = [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(2)]
    options = {
        "method": f"{path}:LastFirst",
        "max_drop": 100.0,
        "calm": 0.01,
        "gauge": FakeGauge(batches),
    }
    result = shoal.compress(model, batches, batches, out=tmp_path / "run", **options)
    assert result.plan.names("linearize") == ["5", "3", "1"]
    assert (result.removed, result.total, result.unit) == (3, 3, "rectifiers")
    assert "calm: 0.01" in (tmp_path / "run" / "config.yaml").read_text()
    again = shoal.compress(model, batches, batches, out=tmp_path / "run", **options)
    assert [step.metrics for step in again.steps] == [step.metrics for step in result.steps]
    with pytest.raises(shoal.ShoalError, match="calm"):
        shoal.compress(model, batches, batches, **{**options, "calm": -1.0})


def test_the_flags_of_a_method(tmp_path: Path) -> None:
    path = written("Add a method", tmp_path)
    command = [sys.executable, "-m", "shoal", "compress", "--method", f"{path}:LastFirst", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--calm" in shown.stdout


def test_an_operation(tmp_path: Path) -> None:
    module = imported(written("Add an operation", tmp_path), "remove_norms_")
    inputs = torch.randn(3, 1, 4, 4)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    network = shoal.capture(model.eval(), inputs)
    with pytest.raises(shoal.ShoalError, match="no batch norm"):
        module.remove_norms_(network, ["1", "2"])
    assert isinstance(network.get_submodule("1"), nn.BatchNorm2d)
    module.remove_norms_(network, ["1"])
    assert network.plan.names("remove_norms") == ["1"]
    again = shoal.load(shoal.save(network, tmp_path / "saved"))
    assert torch.equal(again(inputs), torch.relu(model[0](inputs)))


def test_an_operator(tmp_path: Path) -> None:
    module = imported(written("Add an operator", tmp_path), "Scale")
    network = network_of(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    network.replace_module("1", module.Scale(0.5))
    inputs = torch.randn(3, 4)
    again = shoal.load(shoal.save(network, tmp_path / "saved"))
    assert isinstance(again.get_submodule("1"), module.Scale)
    assert torch.equal(again(inputs), network(inputs))

    class Unknown(nn.ReLU):
        pass

    network.replace_module("1", Unknown())
    with pytest.raises(shoal.ShoalError, match="Unknown"):
        shoal.save(network, tmp_path / "other")


@pytest.mark.long
def test_a_runtime(tmp_path: Path) -> None:
    path = written("Add a runtime", tmp_path)
    network = network_of(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    inputs = torch.randn(6, 4)
    timed = {"repeats": 2, "min_seconds": 0.0}
    report = shoal.benchmark(network, inputs, runtime=f"{path}:ExportedProgram", **timed)
    assert report.latency.median_ms > 0
    runner = import_target(f"{path}:ExportedProgram")().make(network, inputs)
    assert torch.equal(runner(inputs), network(inputs).detach())
