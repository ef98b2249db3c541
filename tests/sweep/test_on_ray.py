"""Cells on a real Ray in this machine, and what is asked of a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.errors import ConfigError, ShoalError
from shoal.sweep.on_ray import _asked
from shoal.sweep.place import Place, cores
from sweep_checks import SPEC, Killer, outcomes

NODES: list[dict[str, Any]] = [
    {"Alive": True, "Resources": {"CPU": 4.0}},
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
    {"Alive": False, "Resources": {"CPU": 64.0}},
]


def test_a_cell_asks_for_its_threads_and_for_a_gpu_where_there_is_one() -> None:
    assert _asked(NODES, 2, None) == {"num_cpus": 2, "num_gpus": 1.0}
    assert _asked(NODES, 2, 0.25) == {"num_cpus": 2, "num_gpus": 0.25}
    assert _asked(NODES[:1], 4, None) == {"num_cpus": 4, "num_gpus": 0.0}


@pytest.mark.parametrize(("threads", "gpus"), [(16, 0), (1, 4.0)])
def test_what_no_machine_has_is_told_before_the_cells_wait_for_ever(
    threads: int, gpus: float
) -> None:
    with pytest.raises(ConfigError, match="no machine of this Ray has"):
        _asked(NODES, threads, gpus)


def test_the_cores_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.sweep.place.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def given(*args: Any) -> tuple[int | None, int | None]:
        place = Place(*args)
        return place.jobs, place.threads

    assert given(None, None, None, None, None) == (1, None)
    assert given(2, None, None, None, None) == (2, 4)
    assert given(2, 3, None, None, None) == (2, 3)
    assert given(None, None, "local", None, None) == (8, 1)
    assert given(2, None, "local", None, None) == (2, 4)
    assert given(None, None, "auto", None, None) == (None, 1)
    assert given(None, None, None, {}, None) == (None, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert given(2, None, None, None, None) == (2, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray": "local", "slurm": {}}, "both ray and slurm are given"),
        ({"gpus_per_cell": 0.5}, "gpus_per_cell is given without ray"),
        ({"ray": "local", "gpus_per_cell": -1.0}, "gpus_per_cell is -1.0: give a number, 0 or"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ShoalError, match=message):
        shoal.sweep(SPEC, out=tmp_path, **options)


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShoalError, match=r"pip install 'shoal\[sweep\]'"):
        shoal.sweep(SPEC, out=tmp_path / "out", ray="local")


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    killer = Killer(tmp_path / "ray")
    spec = {**SPEC, "remove": 2}
    on_ray = shoal.sweep(
        spec, out=tmp_path / "ray", ray="local", jobs=2, threads=1, listener=killer
    )
    assert [cell.state for cell in on_ray.cells] == ["done"] * 4
    (again,) = (cell for cell in on_ray.cells if cell.tries > 1)
    assert (again.name, again.tries) == (killer.killed, 2)
    assert "(done before)" in (tmp_path / "ray" / "logs" / f"{again.name}.txt").read_text()
    here = shoal.sweep(spec, out=tmp_path / "here", jobs=2, threads=1, progress=False)
    assert outcomes(on_ray) == outcomes(here)


# In a process of its own: Ray reads where it may listen when it is imported.
LISTENING = """
import subprocess
import sys
from pathlib import Path
import psutil
from shoal.sweep.place import Place

with Place(1, 1, "local", None, None).open(Path(sys.argv[1])) as pool:
    print(pool.where)
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for connection in process.net_connections() if process.is_running() else []:
            if connection.status == "LISTEN":
                print(connection.laddr.ip.removeprefix("::ffff:"))
"""


@pytest.mark.slow
def test_a_ray_of_its_own_listens_on_this_machine_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = [sys.executable, "-c", LISTENING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    where, *listening = done.stdout.splitlines()
    assert where == "on Ray in this machine"
    assert set(listening) == {"127.0.0.1"}


def test_this_machine_has_cores() -> None:
    assert cores() >= 1
