"""Cells through submitit, in its local executor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import shoal
from shoal.errors import ConfigError, ShoalError
from shoal.sweep.on_slurm import OnSlurm, _Resumable
from shoal.sweep.work import Work
from sweep_checks import SPEC, Killer, outcomes


def test_without_submitit_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ShoalError, match=r"pip install 'shoal\[sweep\]'"):
        shoal.sweep(SPEC, out=tmp_path / "out", slurm={})


def test_a_parameter_that_submitit_does_not_know_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ShoalError, match="Slurm cannot be used so: Unknown argument 'partitoin'"):
        OnSlurm(tmp_path, {"cluster": "local", "partitoin": "gpu"}, None, None)


def test_a_job_that_slurm_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    said = "sbatch: error: invalid partition specified: gpus\nsbatch: error: Batch job failed"

    def refuse(*_: object) -> None:
        raise RuntimeError(said)  # as submitit passes on what sbatch says

    pool = OnSlurm(tmp_path, {"cluster": "local"}, None, None)
    monkeypatch.setattr(pool._executor, "submit", refuse)
    with pytest.raises(ConfigError, match=r"specified: gpus.*: correct its options") as caught:
        pool.start(Work("a", {}, "run", "log.txt", "."))
    assert "\n" not in str(caught.value)
    assert pool.free


def test_a_job_whose_machine_is_taken_away_is_submitted_again_as_it_was() -> None:
    pytest.importorskip("submitit")
    work = Work("a", {}, "run", "log.txt", ".")
    again = _Resumable().checkpoint(work)
    assert again.args == (work,)
    assert isinstance(again.function, _Resumable)


@pytest.mark.slow
def test_the_local_executor_does_the_same_and_starts_a_killed_job_again(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    killer = Killer(tmp_path / "slurm")
    spec = {**SPEC, "method": "easier"}
    found = shoal.sweep(
        spec,
        out=tmp_path / "slurm",
        slurm={"cluster": "local", "timeout_min": 30},
        jobs=2,
        threads=1,
        listener=killer,
    )
    assert [cell.state for cell in found.cells] == ["done", "done"]
    assert sorted(cell.tries for cell in found.cells) == [1, 2]
    here = shoal.sweep(spec, out=tmp_path / "here", jobs=2, threads=1, progress=False)
    assert outcomes(found) == outcomes(here)
