"""The front of accuracy against latency equals a search over all pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
import small_runs
from shoal.cli import main
from shoal.errors import ConfigError
from shoal.measure import Ratio
from shoal.network import Network
from shoal.report import front_table, read_run
from shoal.search.front import front
from shoal.search.records import Metrics, Step


def step(number: int, quality: float, ratio: float, doubt: str = "") -> Step:
    metrics = Metrics(quality, None, 100, 100, 5, 1.0)
    return Step(
        number, "linearize", metrics, 4, 1, 1.0, ratio, ratio, ratio, within=True,
        latency_doubt=doubt,
    )  # fmt: skip


FOUND = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.sampled_from(["", "busy"])),
    min_size=1,
    max_size=14,
)


def steps_of(found: list[tuple[int, int, str]]) -> list[Step]:
    return [step(n, float(q), 1.0 + r / 10, d) for n, (q, r, d) in enumerate(found)]


@given(FOUND)
@settings(max_examples=150, deadline=None)
def test_no_other_step_is_as_accurate_and_as_fast(found: list[tuple[int, int, str]]) -> None:
    steps = steps_of([(quality, ratio, "") for quality, ratio, _ in found])

    def beats(one: Step, other: Step) -> bool:
        mine = one.metrics.top1_val, one.latency_ratio
        theirs = other.metrics.top1_val, other.latency_ratio
        if mine == theirs:
            return one.step > other.step  # of equals the last one stays
        return mine[0] >= theirs[0] and mine[1] >= theirs[1]

    assert front(steps) == [s for s in steps if not any(beats(other, s) for other in steps)]


@given(FOUND)
@settings(max_examples=150, deadline=None)
def test_a_latency_that_is_not_to_be_trusted_hides_no_other(
    found: list[tuple[int, int, str]],
) -> None:
    steps = steps_of(found)
    certain = [s for s in steps if not s.latency_doubt]
    best = front(steps)
    assert [s for s in best if not s.latency_doubt] == front(certain)
    for doubted in (s for s in steps if s.latency_doubt):  # it is hidden as any other is
        assert (doubted in best) == (doubted in front([*certain, doubted]) and doubted in front(
            [s for s in steps if s.latency_doubt]))  # fmt: skip


class Faster(small_runs.FakeGauge):
    """Each removal makes the network faster and less accurate."""

    def quality(self, network: Network, data: object) -> float:
        return 90.0 - sum(site.linearized is not None for site in network.sites)

    def ratio(self, dense: Network, network: Network) -> Ratio:
        return Ratio.of([1.0 + (90.0 - self.quality(network, None)) / 10], [1.0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, all on the front, whose result is the second."""
    folder = tmp_path_factory.mktemp("front") / "run"
    gauge = Faster(small_runs.digits().val)
    small_runs.run(folder, gauge=gauge, max_drop=2.0, epochs=0, latency_batch=3)
    return folder


def test_a_report_lists_the_front_and_how_to_get_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = front_table(read_run(run))
    assert [(row.cells[0], row.cells[-1]) for row in table.rows] == [
        (0, "dense"), (1, ""), (2, "result"), (3, ""),
    ]  # fmt: skip
    assert f"\n  shoal export {run} --step N" in table.notes[1]
    assert main(["report", str(run)]) == 0
    assert "accuracy against latency" in capsys.readouterr().out


def test_a_step_is_exported_merged_for_the_batch_size_of_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.cli import source

    asked: list[dict[str, object]] = []
    real = source.merge_

    def merge(network: Network, **options: object) -> object:
        asked.append(options)
        return real(network, policy="always")

    monkeypatch.setattr(source, "merge_", merge)
    assert main(["export", str(run), "--step", "3", "--format", "pt2"]) == 0
    assert asked == [{"batch": (3,), "runtime": ("eager",)}]
    trained = shoal.load(run, step=3)
    assert len(trained.plan.names("linearize")) == 3
    x = small_runs.digits().example_inputs(5)
    program = torch.export.load(run / "model-step3.pt2").module()
    assert torch.allclose(program(x), trained(x), atol=1e-4)


def test_a_step_that_is_not_there_is_told_with_those_that_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--step", "9"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("has no step 9: it has 0 to 3")
    with pytest.raises(ConfigError, match="is no run with steps"):
        shoal.load(tmp_path, step=0)
    with pytest.raises(ConfigError, match="part is 'best' and step is 1"):
        shoal.load(run, "best", step=1)
