"""A search's progress on the screen: lines in a file or a pipe, moving bars in a terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from shoal.display import in_notebook, print_lines
from shoal.report.table import DONE, UNITS, duration, percent, points, quality_title, quality_unit
from shoal.search.records import Step
from shoal.search.setup import Listener
from shoal.training import BatchReport, EpochReport

_QUIET = 60.0  # seconds after which a log says what goes on


def progress_in_python() -> AbstractContextManager[Listener]:
    """Show a search where Python runs: bars in a terminal, lines in a notebook or a file."""
    return showing(console_in_python())


def console_in_python() -> Console:
    """Return where progress goes: in a notebook to standard output, else to standard error."""
    if in_notebook():  # which says that it is a terminal
        return Console(
            highlight=False, emoji=False, force_jupyter=False, force_terminal=False, width=100
        )
    return Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def showing(console: Console, worded: Callable[[str], str] = str) -> Iterator[Listener]:
    """Yield the listener that fits the console; bars are cleared away at the end.

    Notes, which name parameters, are shown as `worded` returns them.
    """
    if console.quiet:
        yield Listener()
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
        )
        # Latency is measured meanwhile; a busy screen would disturb it.
        with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bars:
            yield _Bars(console, bars, worded)
    else:
        with Lines(console, worded).beating() as lines:
            yield lines


class Lines(Listener):
    """Prints a line for each phase, epoch and step, and at least one in a minute."""

    def __init__(self, console: Console, worded: Callable[[str], str] = str) -> None:
        self.console = console
        self.worded = worded
        self.steps: int | None = None
        self._number = 0
        self._dense: float | None = None
        self._unit = "%"  # of the task's quality
        self._begun = time.monotonic()
        self._done = 0  # steps finished in this process
        self._phase = ("", time.monotonic())  # what goes on, and since when
        self._said = time.monotonic()  # when the last line was printed
        self._last = ""  # that line

    @contextmanager
    def beating(self) -> Iterator[Lines]:
        """Say what goes on whenever nothing else was said for a minute, until the end."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(1.0):
                if time.monotonic() - self._said >= _QUIET and self._phase[0]:
                    text, since = self._phase
                    self._print(f"  {text}, {duration(time.monotonic() - since)} so far")

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()

    def _print(self, line: str) -> None:
        self._said, self._last = time.monotonic(), line
        print_lines(self.console, line)

    def _where(self) -> str:
        return f"step {self._number}" if self._number else "dense"

    @override
    def plan(self, steps: int | None) -> None:
        self.steps = steps

    @override
    def stage(self, step: int, text: str) -> None:
        self._number = step
        if step > 0 and self._done == 0 and text == "score":
            self._begun = time.monotonic()
        self._phase = (f"{self._where()}: {text}", time.monotonic())
        self._begin()

    def _begin(self) -> None:
        line = f"  {self._phase[0]}"
        if line != self._last:  # sites and blocks are scored one after the other
            self._print(line)

    @override
    def epoch(self, report: EpochReport, epochs: int) -> None:
        accuracy = (
            "" if report.train_hits is None else f", training {percent(report.train_hits)} right"
        )
        if report.val_quality is not None:
            accuracy += f", validation {UNITS[self._unit](report.val_quality)}"
        self._print(
            f"  {self._where()}: epoch {report.epoch}/{epochs}, loss {report.loss:.4f}{accuracy}, "
            f"{duration(report.seconds)}",
        )

    @override
    def step(self, step: Step, resumed: bool) -> None:
        if step.step == 0:
            self._dense = step.metrics.top1_val
            self._unit = quality_unit(step.metrics)
        elif not resumed:
            self._done += 1
        self._print(f"{self._headline(step)}{self._ending(step, resumed)}")

    @override
    def note(self, text: str) -> None:
        self._print(f"note: {self.worded(text)}")

    def _headline(self, step: Step) -> str:
        found = step.metrics
        title = quality_title("validation", found.quality_name)
        accuracy = f"{title} {UNITS[quality_unit(found)](found.top1_val)}"
        if step.step == 0:
            return f"dense: {accuracy}"
        if self._dense is not None:
            accuracy += f" ({points(found.top1_val - self._dense)})"
        low = "" if step.within else ", below what is allowed"
        if step.operation == "fine-tune":
            what = f"step {step.begun_from} for the last time" if step.ended else "the network"
            fails = f", {step.shortfall}" if step.shortfall else ""
            return f"step {step.step}: fine-tuned {what}: {accuracy}{_gain(step)}{fails}"
        done = DONE.get(step.operation, step.operation)
        of = "" if self.steps is None else f"/{self.steps}"
        names = ", ".join(step.names)
        return f"step {step.step}{of}: {done} {names}: {accuracy}{_gain(step)}{low}"

    def _ending(self, step: Step, resumed: bool) -> str:
        if resumed:
            return " (done before)"
        text = f"; {duration(step.seconds)}"
        if self._done and self.steps is not None and step.step < self.steps:
            pace = (time.monotonic() - self._begun) / self._done
            text += f", at most {duration(pace * (self.steps - step.step))} left"
        return text


def _gain(step: Step) -> str:
    """Say how much faster the network is, merged, where that is certain."""
    if step.faster is None:
        return ""
    return f", merged {UNITS['×'](step.latency_ratio)} as fast as dense"


class _Bars(Lines):
    """Prints a line for each step, and below them a bar of all steps and one of what goes on."""

    def __init__(self, console: Console, bars: Progress, worded: Callable[[str], str]) -> None:
        super().__init__(console, worded)
        self.bars = bars
        self._all: TaskID | None = None
        self._now: TaskID | None = None

    @override
    def plan(self, steps: int | None) -> None:
        super().plan(steps)
        title = "steps" if steps is None else "steps, at most"
        self._all = self.bars.add_task(title, total=steps)

    @override
    def stage(self, step: int, text: str) -> None:
        super().stage(step, text)
        if self._now is not None:
            self.bars.remove_task(self._now)
        self._now = self.bars.add_task(self._phase[0], total=None)

    @override
    def _begin(self) -> None:
        """Say nothing: the bar does."""

    @override
    def scored(self, done: int, total: int) -> None:
        if self._now is not None:
            self.bars.update(self._now, completed=done, total=total or None)

    @override
    def batch(self, report: BatchReport, epochs: int) -> None:
        if self._now is not None:
            done = (report.epoch - 1) * report.steps + report.step
            self.bars.update(self._now, completed=done, total=epochs * report.steps)

    @override
    def epoch(self, report: EpochReport, epochs: int) -> None:
        """Say nothing: the bar does."""

    @override
    def step(self, step: Step, resumed: bool) -> None:
        super().step(step, resumed)
        if self._all is not None:
            self.bars.update(self._all, completed=step.step)
