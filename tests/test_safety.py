"""Whatever is done to a file of ours: it is read right, or refused or made again in one line."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils import _pytree as pytree

import fuzzing
import shoal
from shoal.cli import main
from shoal.cli.config import read_job, run_options
from shoal.errors import PlanError, RunError, ShoalError
from shoal.merge.cut import LatencyCosts
from shoal.network import Network, capture
from shoal.network.saving import tensors_hash
from shoal.sealed import file_digest, read_sealed, sealed_text
from shoal.search.at_work import AtWork
from shoal.search.records import LatencyReport, Metrics, RunRecord, Step
from shoal.search.rewind import _read as read_rewind
from shoal.search.run import Run
from shoal.search.run_files import read_run, read_steps
from shoal.training import fit
from shoal.training.checkpoint import read_checkpoint as read_state

IDENTITY = {"method": "easier", "max_drop": 1.0, "final_epochs": 0, "weights": "0" * 64}
X = torch.linspace(-1, 1, 12).view(3, 4)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, made by hand, a saved network, a checkpoint and a cache."""
    top = tmp_path_factory.mktemp("safety")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_CACHE", str(top / "cache"))
        return _written(top)


def _written(top: Path) -> Path:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
    net = capture(model.eval(), X).copy()
    after = net.copy()
    shoal.linearize_(after, ["1"], how="identity")
    shoal.save(after, top / "saved")
    config = {"model": "shoal:digits_resnet", "data": "digits", "method": "easier", "lr": 0.1,
              "max_drop": 1.0, "latency_batch": [1, 8], "val_fraction": 0.2}  # fmt: skip
    run = Run(top / "run", IDENTITY, config)
    figures = Metrics(90.0, 89.0, 100, 55, 3, 1.0)
    dense = Step(0, "dense", figures, 2, 0, 1.0, 1.0, 1.0, 1.0, within=True)
    step = replace(dense, step=1, operation="linearize", names=("1",), scores={"1": 0.5, "3": 0.7},
                   sites_left=1, begun_from=0, removed=1, total=2, unit="rectifiers")  # fmt: skip
    run.save_step(dense, net)
    run.save_step(step, after)
    merged = after.copy()
    report = shoal.merge_(merged, policy="always")
    run.keep_best(after)
    ratio = {"median": 1.0, "low": 1.0, "high": 1.0}
    error = report.max_rel_error
    latency = LatencyReport(1, "eager", 1.0, 1.0, 1.0, 1.0, ratio, (), error, 2, 50, 30)
    run.finish(
        RunRecord(dense=figures, final=figures, steps=(dense, step), removed=1, total=2,
                  unit="rectifiers", stopped="nothing is left", latency=latency, merge=report),
        after, merged, top,
    )  # fmt: skip
    run.recall(2, "quality", lambda: {"before": 88.0, "after": [1, 2]})
    run.close()
    batches = [(X, torch.tensor([0, 1, 2]))]
    fit(model, batches, epochs=1, checkpoint=top / "training-001.pt", recipe={"precision": "fp32"})
    state = dict(net.state_dict())
    save_file(state, top / "rewind.safetensors", metadata={"sha256": tensors_hash(state)})
    costs = LatencyCosts(net, 1)
    costs._known, costs._fresh = {"Linear(4, 5)|(1, 4)": 0.25, "Linear(5, 3)|(1, 5)": 0.5}, True
    costs.save()
    costs.path.rename(top / "cache" / "latency.json")
    shutil.copy(top / "training-001.pt", top / "training-001.kept")
    return top


def outputs(net: Network) -> list[torch.Tensor]:
    return [net(X), *net.state_dict().values()]


def reopened(top: Path) -> Any:
    """Open the run as its command would; what it holds then."""
    run = Run(top / "run", IDENTITY, {"lr": 0.1})
    run.close()
    return (top / "run" / "journal.jsonl").read_text(), [s.to_dict() for s in run.steps()]


def recalled(top: Path) -> Any:
    run = Run.__new__(Run)
    run.folder, run.notes = top / "run", []
    run._at_work = AtWork(run.folder)
    return run.recall(2, "quality", lambda: {"before": 88.0, "after": [1, 2]})


def state_of(top: Path) -> Any:
    identity = torch.load(top / "training-001.kept", weights_only=True)["fit"]
    state, note = read_state(top / "training-001.pt", identity)
    return pytree.tree_leaves(state) if note is None else note


def costs_of(top: Path) -> Any:
    costs = LatencyCosts.__new__(LatencyCosts)
    costs.path = top / "cache" / "latency.json"
    return costs._read()


def job_of(top: Path) -> Any:
    run_options(top / "run")
    return read_job(top / "run" / "config.yaml", {}).to_dict()


@dataclass(frozen=True)
class Reader:
    """What reads a file: it gives the same as ever, what `also` knows, or raises a ShoalError."""

    path: str
    read: Callable[[Path], Any]
    also: Callable[[Any], bool] = lambda found: False
    show: Callable[[Any], Any] = lambda found: found  # by what it is the same


READERS = {
    "graph": Reader("saved/network.json", lambda top: shoal.load(top / "saved"), show=outputs),
    "weights": Reader(
        "saved/model.safetensors", lambda top: shoal.load(top / "saved"), show=outputs
    ),
    "merged graph": Reader(
        "run/merged/network.json", lambda top: shoal.load(top / "run"), show=outputs
    ),
    "best weights": Reader("run/best/model.safetensors", lambda top: read_run(top / "run")),
    "result": Reader("run/result.json", lambda top: read_run(top / "run")),
    "step": Reader("run/steps/001/step.json", lambda top: read_steps(top / "run")),
    "step's graph": Reader("run/steps/001/network.json", reopened),
    "identity": Reader("run/identity.json", reopened),
    "journal": Reader("run/journal.jsonl", reopened),
    "measured": Reader("run/measured-002.json", recalled),
    "config": Reader("run/config.yaml", job_of, lambda found: True),  # the user's to edit
    "checkpoint": Reader("training-001.pt", state_of, lambda found: isinstance(found, str)),
    "rewind": Reader("rewind.safetensors", lambda top: read_rewind(top / "rewind.safetensors")),
    "cache": Reader("cache/latency.json", costs_of, lambda found: found == {}),
}


def same(one: Any, other: Any) -> bool:
    a, b = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return a[1] == b[1] and all(
        type(x) is type(y) and (torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y)
        for x, y in zip(a[0], b[0], strict=True)
    )


class Hang(Exception):
    """A reader took too long."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    def ring(*given: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def harm_all(places: Path, top: Path, count: int, seed: int) -> dict[str, Counter[str]]:
    """Harm the files in turn, `count` times in all; return how it ended, by what was harmed."""
    shutil.copytree(places, top)
    originals = {path: path.read_bytes() for path in top.rglob("*") if path.is_file()}
    expected = {name: reader.show(reader.read(top)) for name, reader in READERS.items()}
    found = {name: Counter[str]() for name in READERS}
    generator = random.Random(seed)
    for number in range(count):
        name = list(READERS)[number % len(READERS)]
        reader = READERS[name]
        path = top / reader.path
        others = [originals[top / other.path] for other in READERS.values()]
        data, resealed = fuzzing.harmed(originals[path], others, generator)
        path.write_bytes(data)
        how = _ending(reader, top, expected[name])
        assert how != "changed" or resealed, f"input {number}: {name} was read as something else"
        assert "\n" not in how, f"input {number}: {name}: {how}"
        found[name][how.partition(":")[0]] += 1
        for changed, before in originals.items():
            if not changed.exists() or changed.read_bytes() != before:
                changed.write_bytes(before)
    return found


def _ending(reader: Reader, top: Path, expected: Any) -> str:
    try:
        with at_most(20.0):
            ending = reader.read(top)
    except ShoalError as error:
        return f"refused: {error}"
    if reader.also(ending):
        return "made again"
    try:
        return "right" if same(reader.show(ending), expected) else "changed"
    except Exception:  # a network that somebody made up, with its checksum, may fail when it runs
        return "changed"


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where code that a file named would leave its mark."""
    mark = tmp_path / "mark"
    (tmp_path / "sentinel.py").write_text(f"open({str(mark)!r}, 'w')\ndef run(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield mark
    assert not mark.exists()
    assert "sentinel" not in sys.modules


def test_harm_is_refused_or_made_good(places: Path, tmp_path: Path, sentinel: Path) -> None:
    found = harm_all(places, tmp_path / "places", 500, seed=1)
    assert sum(ends["refused"] for ends in found.values()) > 250


@pytest.mark.slow
def test_ten_thousand_harms(places: Path, tmp_path: Path, sentinel: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = harm_all(places, tmp_path / "places", 10_000, seed=2)
    print(found)
    assert sum(ends.total() for ends in found.values()) == 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def small_model() -> nn.Module:
    """The base of `old_folder`, which its code builds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def old_folder(folder: Path) -> Path:
    """Write a folder of format 1 whose model is built by this file; return it."""
    save_file(dict(small_model().state_dict()), folder / "model.safetensors")
    leaf = {"type": None, "context": None, "children_spec": []}
    args = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf]}
    kwargs = {"type": "builtins.dict", "context": "[]", "children_spec": []}
    plan = {
        "format": 1, "base": f"{__file__}:small_model", "fingerprint": "",
        "operations": [{"kind": "linearize", "names": ["1"], "options": {"how": "identity"}}],
        "inputs": {"structure": json.dumps([1, {**args, "children_spec": [args, kwargs]}]),
                   "leaves": [{"shape": [2, 4], "dtype": "float32"}]},
        "weights_sha256": file_digest(folder / "model.safetensors"),
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


@pytest.mark.slow
def test_harm_to_a_folder_of_format_1(tmp_path: Path, sentinel: Path) -> None:
    """It has no checksum: what it says may be another network, but no more than that."""
    path, generator = old_folder(tmp_path) / "plan.json", random.Random(3)
    data, model = path.read_bytes(), small_model()
    assert shoal.load(tmp_path, model=model).plan.names("linearize") == ["1"]
    for number in range(300):
        path.write_bytes(fuzzing.harmed(data, [], generator)[0])
        try:
            with at_most(60.0):
                shoal.load(tmp_path, model=model if number % 2 else None)
        except ShoalError as error:
            message = str(error)
            assert "\n" not in message, message


def test_a_command_runs_the_code_of_an_old_folder_if_it_is_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(old_folder(tmp_path))
    assert main(["inspect", folder]) == 2
    assert "--trust" in capsys.readouterr().err
    assert main(["inspect", folder, "--trust", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["depth"] == 2


@pytest.mark.parametrize("change", ["shape", "input", "made", "depth", "nodes"])
def test_a_network_is_refused_before_it_takes_memory(
    places: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(places / "saved", tmp_path / "saved"))
    values = read_sealed(folder / "network.json")
    if change == "shape":
        values["nodes"][1]["meta"]["shape"] = [10**6, 10**6]
    elif change == "input":
        values["inputs"]["leaves"][0]["shape"] = [10**12]
    elif change == "made":
        made = {"op": "call_function", "target": "aten.zeros.default", "args": [[10**6, 10**6]]}
        values["nodes"].insert(1, {"name": "zeros", "meta": {}, **made})
    elif change == "depth":
        values["nodes"][1]["args"] = fuzzing.deep(200)
    else:
        monkeypatch.setattr("shoal.sealed._MOST_BYTES", 1000)  # stands for billions of nodes
    (folder / "network.json").write_text(sealed_text(values))
    with pytest.raises(PlanError, match=r"larger than any memory|nested too deeply|has more than"):
        shoal.load(folder)


def test_weights_have_the_mode_of_other_files(places: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = shoal.save(shoal.load(places / "saved"), tmp_path / "saved")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def test_every_flipped_bit_of_a_checkpoint_is_noticed(places: Path, tmp_path: Path) -> None:
    expected, generator = state_of(places), random.Random(4)
    data = (places / "training-001.pt").read_bytes()
    shutil.copy(places / "training-001.kept", tmp_path)
    noticed = 0
    for _ in range(200):
        held = bytearray(data)
        held[generator.randrange(len(held))] ^= 1 << generator.randrange(8)
        (tmp_path / "training-001.pt").write_bytes(held)
        found = state_of(tmp_path)
        noticed += isinstance(found, str)
        assert isinstance(found, str) or same(found, expected)
    assert noticed > 50  # the others were between the records


@pytest.mark.parametrize("part", ["best", "merged", "steps/001"])
def test_weights_of_another_step_are_noticed(places: Path, tmp_path: Path, part: str) -> None:
    """Whether the file of weights alone was exchanged, or the network with it."""
    run = Path(shutil.copytree(places / "run", tmp_path / "run"))
    shutil.copy(run / "steps" / "000" / "network.json", run / part)
    with pytest.raises(PlanError, match=r"network\.json' is not the file that .* written with: "):
        shoal.load(run, part)
    with pytest.raises(PlanError, match="is not the file"):
        shoal.load(run / part)


def test_the_report_names_a_damaged_network(places: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(places / "run", tmp_path / "run"))
    held = bytearray((run / "merged" / "model.safetensors").read_bytes())
    held[-5] ^= 4
    (run / "merged" / "model.safetensors").write_bytes(held)
    with pytest.raises(RunError, match=r"merged/model\.safetensors.*give the run's command again"):
        read_run(run)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (lambda lines: [lines[0], lines[1][:40]], ""),
        (lambda lines: [lines[0]], ""),
        (lambda lines: [lines[0].replace("90.0", "91.0"), lines[1]], "line 1 of "),
        (lambda lines: [lines[0][:-30], lines[1]], "line 1 of "),
    ],
)
def test_a_torn_end_of_the_journal_is_usual_and_a_damaged_line_is_named(
    places: Path, tmp_path: Path, lines: Callable[[list[str]], list[str]], words: str
) -> None:
    run = Path(shutil.copytree(places / "run", tmp_path / "run"))
    path = run / "journal.jsonl"
    whole = path.read_text()
    path.write_text("\n".join(lines(whole.splitlines())))
    opened = Run(run, IDENTITY, {})
    opened.close()
    assert path.read_text() == whole
    assert bool(opened.notes) == bool(words)
    assert words in "".join(opened.notes)


def test_a_damaged_measurement_lets_its_step_begin_anew(places: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(places / "run", tmp_path / "run"))
    (run / "training-002.pt").write_bytes(b"of the step as it was decided before")
    (run / "measured-002.json").write_text('{"quality": {"bef')
    opened = Run(run, IDENTITY, {})
    opened.close()
    assert opened.recall(2, "quality", lambda: 3.0) == 3.0
    assert not (run / "training-002.pt").exists()
    (note,) = opened.notes
    assert "measured-002.json" in note
    assert "step 2 is begun anew" in note
    assert opened.recall(2, "quality", lambda: 4.0) == 3.0


@pytest.mark.parametrize("file", ["step.json", "network.json", "model.safetensors"])
def test_a_damaged_step_is_named_when_its_run_goes_on(
    places: Path, tmp_path: Path, file: str
) -> None:
    run = Path(shutil.copytree(places / "run", tmp_path / "run"))
    path = run / "steps" / "001" / file
    path.write_bytes(path.read_bytes()[:-20] + b" " * 20)
    with pytest.raises(RunError) as caught:
        Run(run, IDENTITY, {})
    assert f"steps/001/{file}'" in str(caught.value)
    assert "restore it, or remove the folders of step 1 and later" in str(caught.value)


def test_an_old_run_has_no_checksums_and_is_read(places: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(places / "run", tmp_path / "run"))
    record, merged = read_run(run), outputs(shoal.load(run))
    for path in run.rglob("*.json"):
        values = json.loads(path.read_text())
        old = {name: value for name, value in values.items() if name not in ("sha256", "files")}
        path.write_text(json.dumps(old))
    Run(run, IDENTITY, {}).close()
    assert read_run(run) == record
    assert same(outputs(shoal.load(run)), merged)
