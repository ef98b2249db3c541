"""The loop of a search: the dense network, step after step of the method, the end."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.distributed import alone, barrier, from_main, is_main
from shoal.errors import ConfigError, NothingToRemoveError, RunError, TrainingError
from shoal.measure import Ratio, machine_facts
from shoal.modes import device_of
from shoal.network import Network
from shoal.search.advice import advice
from shoal.search.at_work import last_part
from shoal.search.budget import Budget
from shoal.search.ending import Ending
from shoal.search.facts import figures_of
from shoal.search.lab import Lab
from shoal.search.limits import (
    candidates,
    fastest_that_holds,
    is_within,
    judged,
    may_ever_be_won_back,
    should_hold,
    why_stop,
)
from shoal.search.method import Method
from shoal.search.records import Metrics, Result, RunRecord, Step, chosen
from shoal.search.settings import name_of
from shoal.search.setup import Setup


def search(method: Method, setup: Setup, notes: Sequence[str] = ()) -> Result:
    """Let a method take step after step until the quality, a target or the method itself ends it.

    `notes` are for the user, before all others.

    Returns:
        The last network within `max_drop` points of the dense one's validation quality; the fastest
        one that comes within it by the last training, if there is one.

    Raises:
        NothingToRemoveError: there is nothing to remove.
        TrainingError: the dense network cannot be trained or is broken.
    """
    found = _Search(method, setup)
    for note in notes:
        found._say(note)
    return found.go()


class _Search:
    def __init__(self, method: Method, setup: Setup) -> None:
        self.method, self.setup, self.run = method, setup, setup.run
        self.options, self.listener, self.base = setup.options, setup.listener, setup.base
        self.steps: list[Step] = []
        if self.run is not None:  # whose allowed drop may be larger than it was
            self.steps = judged(self.run.steps(), self.options.max_drop)
            self.run.judge(self.steps)
        self.budget = (
            None if self.options.hours is None else Budget(self.options, setup.clock, self.run)
        )
        setup.clock.at_least(sum(step.seconds for step in self.steps))
        self._kept: dict[int, Network] = {}  # what may be the result, where there is no folder
        self._planned = False  # whether the plan of the budget was told
        self.notes: list[str] = list(self.base.notes)
        self.mended: list[str] = []  # notes of this call alone: the run's record ends as ever

    def go(self) -> Result:
        start = Lab(self.setup, self.base, None, [])
        why = self.method.nothing_to_remove(start)
        if why:
            raise NothingToRemoveError(why)
        self.listener.plan(self._most_steps(start))
        self._tell_damage()
        for step in self.steps:
            self.listener.step(step, resumed=True)
        dense = self._dense()
        network = self._network([s for s in self.steps if not s.ended][-1], dense)
        stopped = self.steps[-1].ended or self._stopped(network, dense)
        while not stopped:
            lab = self._lab(network.copy(), dense)
            stopped = self._step(lab)
            self._tell_damage()
            if not stopped:
                network = lab.network
                self._tell_plan()
                stopped = self._stopped(network, dense)
        self._train_at_last(dense, stopped)
        return self._result(dense, self._network(chosen(self.steps), dense).eval(), stopped)

    # ------------------------------------------------------------------ steps

    def _dense(self) -> Network:
        """Return the dense network, trained if asked for; step 0 of the run."""
        if self.steps and self.run is not None:
            return self.run.load_step(0, self.base)
        lab = self._trained_dense()
        stopped_early = lab.coach.epochs < (self.options.rewind or 0)
        if self.setup.rewind.missing and self.run is not None and not stopped_early:
            # The run was killed between that epoch's checkpoint and the keeping of its weights.
            self.run.forget_training(0)
            lab = self._trained_dense()
        if self.setup.rewind.missing:
            raise ConfigError(
                f"rewind={self.options.rewind}, but early_stop ended the dense network's training "
                f"after {lab.coach.epochs} epochs: lower rewind, or set early_stop=None"
            )
        step = self._keep(lab, "dense")
        for note in self.setup.gauge.doubts(step.metrics.top1_val):
            self._say(note)
        return lab.network

    def _trained_dense(self) -> Lab:
        lab = Lab(self.setup, self.base.copy(), None, [])
        wanted, recipe = self.options, self.setup.named_recipe(self.options.dense_recipe)
        lab.train(wanted.dense_epochs, lr=wanted.dense_lr, recipe=recipe)
        return lab

    def _network(self, step: Step, dense: Network) -> Network:
        """Return a copy of the network of a finished step."""
        if step.step == 0:
            return dense.copy()
        if self.run is None:
            return self._kept[step.step].copy()
        return self.run.load_step(step.step, self.base)

    def _step(self, lab: Lab) -> str:
        """Let the method take a step, and keep it; returns why the search ends, or ""."""
        if self.options.score_on == "rewound":
            keeps = self.method.keeps(lab)  # what is off now stays off
            self.setup.rewind.apply_(lab.network)
            if keeps is not None:
                keeps(lab.network)
        try:
            if not self.method.step(lab):
                for note in lab.notes:  # which no step keeps
                    self._say(note)
                return lab.why or "nothing is left to remove"
        except (TrainingError, ConfigError) as error:
            if isinstance(error, ConfigError) and lab.number == 1:
                raise  # after a step it is no option that is wrong: nothing is left to score
            return self._failed(lab, f"step {lab.number} failed: {error}")
        if not lab.operations and not lab.coach.epochs:
            raise ConfigError("the method's step changed nothing: let it return False at the end")
        try:
            self._keep(lab, "+".join(dict(lab.operations)) or "fine-tune")
        except ConfigError as error:  # its quality is no number, say
            return self._failed(lab, f"step {lab.number} failed: {error}")
        return ""

    def _failed(self, lab: Lab, why: str) -> str:
        """Say that a training failed, and forget it; returns why."""
        if self.run is not None:
            self.run.forget_training(lab.number, lab.coach.part)
        self._say(why)
        return why

    def _train_at_last(self, dense: Network, stopped: str) -> None:
        """Train the fastest step that then is within the drop, and what it takes to find it."""
        if self.options.final_epochs == 0:
            return

        late = False

        def holds(begun: Step) -> bool | None:
            nonlocal late
            last = next((s for s in self.steps if s.ended and s.begun_from == begun.step), None)
            if last is None:
                late = self.budget is not None and not self.budget.allows(begun, self.steps)
                last = None if late else self._last_training(begun, dense, stopped)
            return None if late else last is not None and last.within

        found = candidates(self.options, self.steps)
        fastest_that_holds(found, holds, lambda s: should_hold(s, self.options, self.steps))
        if late and self.budget is not None:
            more = "another" if any(step.ended for step in self.steps) else "the"
            self._say(f"{self.budget.name} leaves no time for {more} last training: raise hours")

    def _last_training(self, begun: Step, dense: Network, stopped: str) -> Step | None:
        """Train the network of a step for the last time, as a step of its own; None if it fails."""
        lab = self._lab(self._network(begun, dense), dense)
        lab.coach.part = last_part(begun.step)
        lab.quality_before = begun.metrics.top1_val
        try:
            wanted, keeps = self.options, self.method.keeps(lab)
            recipe = self.setup.named_recipe(wanted.final_recipe)
            lab.train(wanted.final_epochs, lr=wanted.final_lr, recipe=recipe, after_step=keeps)
            return self._keep(lab, "fine-tune", begun=begun, ended=stopped)
        except (TrainingError, ConfigError) as error:
            self._failed(lab, f"the last fine-tuning of step {begun.step} failed: {error}")
            return None

    # Long because a step has so many fields.
    def _keep(
        self, lab: Lab, operation: str, *, begun: Step | None = None, ended: str = ""
    ) -> Step:
        """Measure a network and write it down as the next step.

        `begun` is the step that it was made of; None for the last one. If that was within the drop,
        a last training of it must not be below what it was.
        """
        network, gauge, setup = lab.network, self.setup.gauge, self.setup
        self.listener.stage(lab.number, "evaluate")
        quality = gauge.quality(network, setup.data.val)
        test = None if setup.data.test is None else gauge.quality(network, setup.data.test)

        def measured() -> tuple[Metrics, Ratio]:
            found, unchanged = gauge.measure(network), network is lab.dense
            ratio = Ratio.of([1.0], [1.0]) if unchanged else gauge.ratio(lab.dense, network)
            names = setup.task.quality_name, setup.task.quality_unit
            sizes = found.macs, found.params, found.depth, found.latency_ms
            return Metrics(quality, test, *sizes, *names, relus=found.relus), ratio

        # All decide alike by it. One measures, so that no other one slows it down.
        figures: Any = measured() if is_main() else None
        metrics, ratio = from_main(figures)
        dense_quality = self.steps[0].metrics.top1_val if self.steps else metrics.top1_val
        drop = self.options.max_drop
        if begun is not None and begun.within:
            drop = min(drop, dense_quality - begun.metrics.top1_val)
        scores, progress = lab.scores, self.method.progress(lab)
        begun_from = None if lab.number == 0 else lab.number - 1 if begun is None else begun.step
        step = Step(
            step=lab.number,
            operation=operation,
            metrics=metrics,
            sites_left=network.sites_left,
            epochs=lab.coach.epochs,
            seconds=time.perf_counter() - lab.started + lab.coach.seconds_before,
            latency_ratio=ratio.median,
            latency_ratio_low=ratio.low,
            latency_ratio_high=ratio.high,
            latency_doubt=ratio.doubt,
            within=is_within(metrics, dense_quality, drop),
            names=lab.names(),
            scores={} if scores is None else {name: float(s) for name, s in scores.items()},
            settled=None if scores is None else scores.settled,
            top1_val_before=lab.quality_before,
            notes=tuple(lab.notes),
            energy=lab.energy(),
            ended=ended,
            begun_from=begun_from,
            epoch_seconds=lab.coach.epoch_seconds,
            removed=progress.done,
            total=progress.total,
            unit=progress.unit,
        )
        self.steps.append(step)
        if self.run is not None:
            self.run.save_step(step, network)
        else:
            self._kept[step.step] = network.copy()
            wanted = self._wanted()
            self._kept = {n: kept for n, kept in self._kept.items() if n in wanted}
        self.setup.clock.keep()
        self.listener.step(step, resumed=False)
        return step

    def _wanted(self) -> set[int]:
        """Return the steps whose networks may be the result, or be trained to be it."""
        loop = [step for step in self.steps if not step.ended]
        found = {chosen(self.steps).step, chosen(loop).step}
        if self.options.final_epochs == 0:
            return found
        may = (s for s in loop if may_ever_be_won_back(s, self.options, self.steps))
        return found | {step.step for step in may if not step.within}

    def _lab(self, network: Network, dense: Network) -> Lab:
        return Lab(self.setup, network, dense, self.steps, self._removed)

    def _removed(self, lab: Lab) -> int:
        return self.method.progress(lab).done

    def _most_steps(self, lab: Lab) -> int | None:
        progress = self.method.progress(lab)
        if progress.per_step is None:
            return None
        return -(-min(progress.total, self.options.remove or progress.total) // progress.per_step)

    def _stopped(self, network: Network, dense: Network) -> str:
        removed = self._removed(self._lab(network, dense))
        why = why_stop(self.options, self.steps, removed)
        if why or self.budget is None or not self.budget.why_stop(self.steps):
            return why
        if len(self.steps) == 1:
            self._say(f"{self.budget.name} has no room for a step: raise hours, or lower epochs")
        # A search that had ended before, for whatever reason, ends likewise.
        before = "" if self.run is None else self.run.why_ended(self.steps)
        return before or self.budget.name

    def _tell_plan(self) -> None:
        """Say what the budget of time allows, once there is a step to go by."""
        if self.budget is not None and not self._planned:
            self._planned = True
            self._say(self.budget.plan(self.steps))

    def _tell_damage(self) -> None:
        """Say what was damaged in the run's folder and is made again."""
        while self.run is not None and self.run.notes:
            self.mended.append(self.run.notes.pop(0))
            self.listener.note(self.mended[-1])

    def _say(self, note: str) -> None:
        self.notes.append(note)
        self.listener.note(note)

    # ------------------------------------------------------------------ the end

    def _result(self, dense: Network, best: Network, stopped: str) -> Result:
        if self.run is None:
            with tempfile.TemporaryDirectory() as folder:
                ending = self._ending(dense, best, Path(folder))
            record = self._record(dense, best, stopped, ending)
            for network in (best, ending.merged):
                network.meta |= figures_of(record)
            return Result(**vars(record), model=best, merged=ending.merged)
        wanted: dict[str, Any] = {"stopped": stopped, "energy": self.setup.meter is not None}
        wanted["int8"] = self.setup.machine.int8
        known = self.run.ended(self.base, self.steps, **wanted)
        self._tell_damage()
        if known is None:
            self._write_end(dense, best, stopped)
            known = self.run.ended(self.base, self.steps, **wanted)
        if known is None:
            raise RunError(f"'{self.run.folder}' cannot be read back: repeat the command")
        record, merged = known
        best.meta |= figures_of(record)
        # Notes of this call: those of an earlier one are in the folder.
        notes = (*self.mended, *self.notes, *self._advice(record))
        return Result(**{**vars(record), "notes": notes}, model=best, merged=merged)

    def _write_end(self, dense: Network, best: Network, stopped: str) -> None:
        """Merge the result, measure it, and write it down."""
        assert self.run is not None
        self.run.keep_best(best)
        ending = None
        with tempfile.TemporaryDirectory() as folder:
            if is_main():  # the other processes read what it writes
                with alone():
                    ending = self._ending(dense, best, Path(folder))
            record = self._record(dense, best, stopped, ending)
            if ending is not None and record is not None:
                for network in (best, ending.merged):
                    network.meta |= figures_of(record)
                self.run.finish(record, best, ending.merged, Path(folder))
                self.notes += ending.notes
        barrier()

    def _ending(self, dense: Network, best: Network, folder: Path) -> Ending:
        """Return the end of the search; files of the result in int8 go into the folder."""
        int8 = folder if self.setup.machine.int8 else None
        return self.setup.gauge.ending(dense, best, self._stage, int8)

    def _stage(self, text: str) -> None:
        self.listener.stage(chosen(self.steps).step, text)

    def _record(self, dense: Network, best: Network, stopped: str, ending: Ending | None) -> Any:
        """Return the record of the search; None in a process that did not measure its end."""
        energy: Any = {}
        step, lab = chosen(self.steps), self._lab(best, dense)
        if self.setup.meter is not None:
            self._stage("measure energy")
            energy = self.setup.meter.summary(dense, best, self.steps, lab)
        if ending is None:
            return None
        progress, latency = self.method.progress(lab), ending.latency
        record = RunRecord(
            dense=replace(self.steps[0].metrics, latency_ms=latency.dense_ms),
            final=replace(step.metrics, latency_ms=latency.result_ms),
            steps=tuple(self.steps),
            removed=progress.done,
            total=progress.total,
            unit=progress.unit,
            stopped=stopped,
            budget=self.options.budget or 1.0,
            latency=latency,
            merge=ending.report,
            notes=(*self.notes, *ending.notes),
            energy=energy,
            int8=ending.int8,
            latency_batch=self.setup.machine.batches,
            machine=machine_facts(device_of(best)),
            layers=ending.layers,
            merged_layers=ending.merged_layers,
            regions=ending.regions,
        )
        return replace(record, notes=(*record.notes, *self._advice(record)))

    def _advice(self, record: RunRecord) -> tuple[str, ...]:
        if not self.method.removes:
            return ()
        return advice(record, name_of(self.method), self.options, self.setup.machine)
