from __future__ import annotations

import io
import time
from typing import Any

import pytest
import torch
from rich.console import Console

from shoal.report.progress import showing
from shoal.search.records import Metrics, Step
from shoal.search.setup import Listener
from shoal.training import BatchReport, EpochReport


def step(number: int, top1: float, **changes: Any) -> Step:
    values: dict[str, Any] = {
        "step": number,
        "operation": "linearize" if number else "dense",
        "names": (f"layer[{number}].relu",) if number else (),
        "metrics": Metrics(top1, None, 1, 1, 1, 1.0),
        "sites_left": 3 - number,
        "scores": {},
        "settled": True,
        "top1_val_before": None,
        "epochs": 1,
        "seconds": 2.0,
        "latency_ratio": 1.0,
        "latency_ratio_low": 1.0,
        "latency_ratio_high": 1.0,
        "within": True,
    }
    return Step(**{**values, **changes})


def tell(listener: Listener) -> None:
    """Tell a listener of a search of two steps, the first of which was done before."""
    listener.plan(2)
    listener.step(step(0, 90.0), resumed=True)
    listener.step(step(1, 89.5), resumed=True)
    listener.stage(2, "score")
    listener.scored(1, 0)
    listener.scored(2, 4)
    listener.stage(2, "fine-tune")
    listener.batch(BatchReport(1, 1, 5, 0.1, torch.tensor(1.0)), 1)
    listener.epoch(EpochReport(1, 3.0, 0.25, 0.1, 97.0, 91.0), 1)
    listener.stage(2, "evaluate")
    listener.step(step(2, 80.0, within=False, operation="drop"), resumed=False)
    listener.note("a [note]")


def terminal() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, highlight=False)


def shown(console: Console) -> str:
    with showing(console) as listener:
        tell(listener)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_file_gets_a_line_for_each_epoch_and_step() -> None:
    lines = shown(Console(file=io.StringIO(), width=40)).splitlines()
    assert lines == [
        "dense: validation 90.00 % (done before)",
        "step 1/2: linearized layer[1].relu: validation 89.50 % (-0.50 points) (done before)",
        "  step 2: score",
        "  step 2: fine-tune",
        "  step 2: epoch 1/1, loss 0.2500, training 97.00 % right, validation 91.00 %, 3.0 s",
        "  step 2: evaluate",
        "step 2/2: dropped layer[2].relu: validation 80.00 % (-10.00 points), below what is "
        "allowed; 2.0 s",
        "note: a [note]",
    ]


def test_a_terminal_gets_bars_and_a_line_for_each_step() -> None:
    text = shown(terminal())
    assert "steps, at most" in text
    assert "step 2/2: dropped layer[2].relu" in text
    assert "epoch 1/1" not in text
    assert "\x1b[?25h" in text  # the cursor is back


def test_the_bars_go_away_when_the_search_breaks_off() -> None:
    console = terminal()

    def broken_off() -> None:
        with showing(console) as listener:
            listener.plan(3)
            listener.stage(1, "score")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert "\x1b[?25h" in console.file.getvalue()  # type: ignore[attr-defined]


def test_another_process_shows_nothing() -> None:
    assert shown(Console(file=io.StringIO(), quiet=True)) == ""


def test_the_time_left_follows_from_the_steps_done(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.report import progress

    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    with showing(console) as listener:
        listener.plan(10)
        listener.step(step(0, 90.0, seconds=50.0), resumed=False)
        listener.stage(1, "score")
        now += 20.0
        listener.step(step(1, 90.0, seconds=20.0), resumed=False)
    assert "20.0 s, at most 3 min 0 s left" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_search_without_a_known_number_of_steps_names_none_and_no_time_left() -> None:
    console = Console(file=io.StringIO(), width=40)
    faster = {"latency_ratio": 1.25, "latency_ratio_low": 1.2, "latency_ratio_high": 1.3}
    with showing(console) as listener:
        listener.plan(None)
        listener.step(step(0, 90.0), resumed=True)
        listener.step(step(1, 90.5, **faster), resumed=False)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[1] == (
        "step 1: linearized layer[1].relu: validation 90.50 % (+0.50 points), "
        "merged 1.25 × as fast as dense; 2.0 s"
    )


def test_the_last_training_is_told_as_such() -> None:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    with showing(console) as listener:
        listener.plan(None)
        listener.step(step(0, 90.0), resumed=False)
        for within in (True, False):
            changes = {"operation": "fine-tune", "names": (), "within": within}
            changes |= {"ended": "nothing is left", "begun_from": 1}
            listener.step(step(2, 89.8, **changes), resumed=False)
    assert isinstance(console.file, io.StringIO)
    _, taken, left = console.file.getvalue().splitlines()
    told = "step 2: fine-tuned step 1 for the last time: validation 89.80 % (-0.20 points)"
    assert taken.startswith(told)
    assert left.startswith(f"{told}, not better")


def test_a_log_says_at_least_once_a_minute_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.report import progress

    monkeypatch.setattr(progress, "_QUIET", 0.0)
    console = Console(file=io.StringIO(), width=80)
    with showing(console) as listener:
        listener.stage(1, "score")
        time.sleep(1.3)
    assert isinstance(console.file, io.StringIO)
    first, *beats = console.file.getvalue().splitlines()
    assert first == "  step 1: score"
    assert beats
    assert all(line.startswith("  step 1: score, ") and line.endswith(" so far") for line in beats)


def test_a_phase_that_begins_twice_in_a_row_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=100)
    with showing(console) as listener:
        for text in ("score", "score", "merge", "score"):
            listener.stage(1, text)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == ["  step 1: score", "  step 1: merge", "  step 1: score"]


@pytest.mark.parametrize("text", ["measure in ./a[b]/rt.py:Mine", "measure in ./a[/b]/rt.py:Mine"])
def test_brackets_in_names_are_no_markup_in_a_bar(text: str) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, highlight=False)
    with showing(console) as listener:
        listener.plan(1)
        listener.stage(0, text)
        listener.scored(1, 2)
    assert text in console.file.getvalue()
