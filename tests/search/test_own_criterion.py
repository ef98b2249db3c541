"""A criterion of one's own, in one file outside the package, with an option."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import processes
from shoal.cli import main
from shoal.errors import ConfigError, RunError
from shoal.search.setup import Listener
from small_runs import facts, removals, run, same_weights

SOURCE = '''
from dataclasses import dataclass

import shoal


class Depth(shoal.Criterion):
    """Scores each site by how deep it lies: the last is the lowest."""

    place = "site"

    @dataclass(frozen=True, kw_only=True)
    class Options(shoal.Criterion.Options):
        power: float = shoal.option(1.0, "To which power; below 0 the first is the lowest.")

    options: Options

    def compute(self, network, data):
        names = [site.name for site in network.sites if site.linearized is None]
        scores = {name: (1 / k) ** self.options.power for k, name in enumerate(names, 1)}
        return shoal.Scores("depth", scores, 0)
'''


@pytest.fixture
def criterion(tmp_path: Path) -> str:
    """Return the target of the criterion above."""
    (tmp_path / "depth.py").write_text(SOURCE)
    return f"{tmp_path / 'depth.py'}:Depth"


def test_the_help_tells_its_option(
    criterion: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main(["compress", "--criterion", criterion, "--help"]) == 0
    told = capsys.readouterr().out
    assert f"as in '{criterion}?power=…': power: To which power;" in told
    assert "is the lowest. Default: 1." in told
    assert main(["compress", "--criterion", "entropy?zeros=on", "--help"]) == 0
    assert "Options of 'entropy', as in" in capsys.readouterr().out
    assert main(["compress", "--help"]) == 0
    assert "Options of" not in capsys.readouterr().out
    assert main(["compress", "--criterion", "entrpy", "--help"]) == 2
    assert "did you mean 'entropy'" in capsys.readouterr().err


def test_it_runs_with_its_option(criterion: str, tmp_path: Path) -> None:
    usual = run(tmp_path / "usual", method="easier", criterion=criterion, remove=1)
    first, *_, last = usual.steps[1].scores
    assert usual.steps[1].names == (last,)
    given = f"{criterion}?power=-1"
    turned = run(tmp_path / "turned", method="easier", criterion=given, remove=1)
    assert turned.steps[1].names == (first,)
    assert yaml.safe_load((tmp_path / "turned/config.yaml").read_text())["criterion"] == given
    assert json.loads((tmp_path / "turned/identity.json").read_text())["criterion"] == given
    with pytest.raises(RunError, match="other options: criterion was"):
        run(tmp_path / "usual", method="easier", criterion=given, remove=1)
    with pytest.raises(ConfigError, match="unknown option 'pwer'"):
        run(method="easier", criterion=f"{criterion}?pwer=2")


class Killer(Listener):
    """Kills its process in the first epoch of a step."""

    def epoch(self, report: Any, epochs: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path, options: dict[str, Any]) -> None:
    run(folder, listener=Killer(), **options)


@pytest.mark.long
def test_it_goes_on_after_kill_9_to_the_same_result(criterion: str, tmp_path: Path) -> None:
    options = {"method": "easier", "criterion": f"{criterion}?power=-1", "remove": 2}
    whole = run(tmp_path / "whole", **options)
    folder = tmp_path / "stopped"
    for _ in range(2):
        stopped = processes.start(tmp_path, killed, folder, options)
        assert stopped.wait() == -signal.SIGKILL, stopped.printed()
    again = run(folder, **options)
    assert facts(again) == facts(whole)
    assert removals(again) == removals(whole)
    assert same_weights(again.model, whole.model)
