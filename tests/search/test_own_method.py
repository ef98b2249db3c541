"""A method of one's own, in one file outside the package."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from torch import nn

import processes
import shoal
from shoal.errors import ConfigError, RunError
from shoal.network import Network
from shoal.search.method import methods
from shoal.search.run_files import read_run
from shoal.search.setup import Listener
from small_runs import facts, removals, run, same_weights

SOURCE = '''
from dataclasses import dataclass

import torch
from torch import nn

import shoal


@shoal.register_method("pull")
class Pull(shoal.Method):
    """Learns slopes that a penalty pulls to one, and makes the steepest one linear."""

    @dataclass(frozen=True, kw_only=True)
    class Options(shoal.Options):
        pull: float = shoal.option(0.5, "Weight of the penalty.")

    def progress(self, lab):
        total = lab.base.sites_left
        return shoal.Progress(total - lab.network.sites_left, total, "rectifiers", per_step=1)

    def step(self, lab):
        names = [site.name for site in lab.network.sites if site.linearized is None]
        if not names:
            return lab.done()

        def slopes(network):
            return [network.get_submodule(name).weight for name in names]

        def penalty(network, values):
            assert values[names[0]].requires_grad
            return self.options.pull * sum((1 - slope**2).abs().sum() for slope in slopes(network))

        def clamp(network):
            for slope in slopes(network):
                slope.clamp_(0.0, 1.0)

        def groups(network):
            return [{"params": slopes(network), "lr": 0.05, "weight_decay": 0.0}]

        lab.replace(names, lambda site: nn.PReLU(init=0.1))
        lab.train(penalty=penalty, at=names[:1], groups=groups, after_step=clamp)
        steepest = dict(zip(names, [slope.item() for slope in slopes(lab.network)]))
        assert all(0.0 <= slope <= 1.0 for slope in steepest.values())
        assert lab.once("steepest", lambda: steepest) == steepest
        lab.linearize([max(steepest, key=steepest.get)], how="identity")
        lab.train()
        return True
'''


class Killer(Listener):
    """Kills its process after so many epochs."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch(self, report: Any, epochs: int) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def method(tmp_path: Path) -> Iterator[str]:
    """Yield the target of the method above; afterwards it is not registered any more."""
    (tmp_path / "pull.py").write_text(SOURCE)
    yield f"{tmp_path / 'pull.py'}:Pull"
    methods._entries.pop("pull", None)


def test_it_runs_with_its_option_penalty_and_hook(method: str, tmp_path: Path) -> None:
    result = run(tmp_path / "run", method=method, pull=0.3, remove=2)
    assert [step.operation for step in result.steps] == ["dense", *2 * ["replace+linearize"]]
    assert (result.removed, result.total, result.unit) == (2, 4, "rectifiers")
    assert result.stopped == "removed 2, as asked"
    gone = [name for op in result.plan.operations if op.kind == "linearize" for name in op.names]
    assert [step.names for step in result.steps[1:]] == [(name,) for name in gone]
    assert sum(isinstance(m, nn.PReLU) for m in result.model.modules()) == 2
    assert [step.epochs for step in result.steps] == [0, 2, 2]  # two trainings of an epoch
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["method"], config["pull"], config["remove"]) == (method, 0.3, 2)
    assert json.loads((tmp_path / "run" / "identity.json").read_text())["pull"] == 0.3
    with pytest.raises(RunError, match=r"pull was 0\.3 and is 0\.4"):
        run(tmp_path / "run", method=f"{method}?pull=0.4", remove=2)
    with pytest.raises(ConfigError, match=r"'easier' has no option pull: .* choose 'pull'"):
        run(method="easier", pull=0.3)


class Places(shoal.Criterion):
    """Scores each site by its place, the first highest, in numbers of NumPy's."""

    place = "site"

    def compute(self, network: Network, data: Any) -> shoal.Scores:
        names = [site.name for site in network.sites if site.linearized is None]
        return shoal.Scores("places", {n: np.float32(1 / k) for k, n in enumerate(names, 1)}, 0)


def test_scores_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"criterion": f"{__name__}:Places", "remove": 1, "epochs": 0}
    result = run(tmp_path, **options)
    (step,) = read_run(tmp_path).steps[1:]
    assert step.names == ("last",)
    assert step == result.steps[1]
    assert list(step.scores.values()) == pytest.approx([1.0, 1 / 2, 1 / 3, 1 / 4])
    assert facts(run(tmp_path, **options)) == facts(result)


def killed_after(epochs: int, folder: Path, options: dict[str, Any]) -> None:
    run(folder, listener=Killer(epochs), **options)


@pytest.mark.long
def test_it_goes_on_after_kill_9_to_the_same_result(method: str, tmp_path: Path) -> None:
    options = {"method": method, "pull": 0.3, "remove": 2, "epochs": 2}
    whole = run(tmp_path / "whole", **options)
    folder = tmp_path / "stopped"
    # In the first training of a step, in its second one, and in the next step.
    for epochs in (1, 3, 2):
        killed = processes.start(tmp_path, killed_after, epochs, folder, options)
        assert killed.wait() == -signal.SIGKILL, killed.printed()
    again = run(folder, **options)
    assert facts(again) == facts(whole)
    assert removals(again) == removals(whole)
    assert same_weights(again.model, whole.model)
    assert not list(folder.glob("training*"))


def test_its_hooks_need_the_built_in_trainer(method: str) -> None:
    with pytest.raises(ConfigError, match="omit fit="):
        run(method=method, fit=lambda network: None)
