"""The loop of every step-wise method: score, remove, fine-tune, evaluate, go on or stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from shoal.distributed import barrier, from_main, is_main
from shoal.errors import ConfigError, RunError, TrainingError
from shoal.merge.padding import find_movable_paddings, move_paddings_
from shoal.modes import device_of
from shoal.network import Network
from shoal.search.ending import Ending
from shoal.search.legacy import Method, Search, Situation
from shoal.search.listener import Listener
from shoal.search.meter import Meter, Spent
from shoal.search.records import Metrics, Step, chosen
from shoal.search.result import Result
from shoal.search.rewind import Rewind
from shoal.search.run import Run
from shoal.search.stopping import why_stop
from shoal.search.task import Task
from shoal.seeds import derive_seed, preserved_rng, seed_everything

__all__ = ["search"]


def search(
    network: Network,
    method: Method,
    task: Task,
    run: Run | None = None,
    listener: Listener | None = None,
    meter: Meter | None = None,
) -> Result:
    """Remove layers step by step until the accuracy, a target or the candidates end it.

    Args:
        network: the captured original, with an empty plan. It is left as it is.
        method: chooses what goes.
        task: data, training, measuring.
        run: the folder to keep steps in, and to go on from.
        listener: hears of the progress.
        meter: measures what training takes; None measures nothing.

    Returns:
        The last network within `max_drop` points of the dense one's validation accuracy.

    Raises:
        ConfigError: there is nothing to remove.
        TrainingError: the dense network cannot be trained or is broken.
    """
    return _Search(network, method, task, run, listener or Listener(), meter).go()


class _Search:
    def __init__(
        self,
        base: Network,
        method: Method,
        task: Task,
        run: Run | None,
        listener: Listener,
        meter: Meter | None,
    ) -> None:
        self.base = base
        self.method = method
        self.task = task
        self.options: Search = task.search
        self.run = run
        self.listener = listener
        self.meter = meter
        self.rewind = Rewind(self.options, base, run, own_training=task.custom_fit is not None)
        count = len(method.candidates(base))
        self.total = base.sites_left if method.unit == "rectifiers" else count
        if count == 0:
            raise ConfigError(method.nothing_to_remove(base))
        self.steps: list[Step] = run.steps() if run is not None else []
        self.notes: list[str] = list(base.notes)

    def go(self) -> Result:
        self.listener.plan(self._most_steps())
        for step in self.steps:
            self.listener.step(step, resumed=True)
        dense = self._dense()
        network, best = self._latest(dense)
        ended = self.steps[-1].ended
        stopped = ended or self._stopped(network)
        while not stopped:
            number = len(self.steps)
            try:
                stepped = self._step(number, network, dense)
            except (TrainingError, ConfigError) as error:
                if isinstance(error, ConfigError) and number == 1:
                    raise  # after a step it is no option that is wrong: nothing is left to score
                if self.run is not None:
                    self.run.forget_training(number)
                stopped = f"step {number} failed: {error}"
                self.notes.append(stopped)
                self.listener.note(stopped)
                break
            if stepped is None:
                stopped = "no removal that is left was measured to save time"
                break
            network = stepped
            if self.steps[-1].within:
                best = network.copy()
            stopped = self._stopped(network)
        if not ended:
            best = self._fine_tuned(best, dense, stopped)
        return self._result(dense, best.eval(), stopped)

    def _most_steps(self) -> int | None:
        if self.options.step_saving < 1.0:  # a step ends by what it was measured to save
            return None
        wanted = min(self.total, self.options.remove or self.total)
        return -(-wanted // self.options.per_step)

    # ------------------------------------------------------------------ the dense network

    def _dense(self) -> Network:
        """Return the dense network, trained if asked for; step 0 of the run."""
        if self.steps:
            assert self.run is not None
            return self.run.load_step(0, self.base)
        started = time.perf_counter()
        dense = self.base.copy()
        notes, energy = self._train(dense, 0, self.options.dense_epochs, teacher=None)
        if self.rewind.missing:
            # The run was killed between that epoch's checkpoint and the keeping of its weights.
            if self.run is not None:
                self.run.forget_training(0)
            dense = self.base.copy()
            notes, energy = self._train(dense, 0, self.options.dense_epochs, teacher=None)
        self._keep(
            dense,
            dense,
            started,
            operation="dense",
            epochs=self.options.dense_epochs,
            notes=notes,
            energy=energy,
        )
        return dense

    def _latest(self, dense: Network) -> tuple[Network, Network]:
        """Return the network of the last finished step and the last one within the drop."""
        last = self.steps[-1].step
        best = self._chosen().step
        networks = {0: dense}
        for number in {last, best} - {0}:
            assert self.run is not None
            networks[number] = self.run.load_step(number, self.base)
        return networks[last].copy(), networks[best].copy()

    # ------------------------------------------------------------------ a step

    def _step(self, number: int, current: Network, dense: Network) -> Network | None:
        """Remove, fine-tune and measure; `current` is left as it is.

        Returns:
            The new network; None if the method proposes nothing.
        """
        started = time.perf_counter()
        network = current.copy()
        count = self.options.per_step
        if self.options.remove is not None:
            count = min(count, self.options.remove - self._removed(network))
        self.listener.stage(number, "score")
        if self.options.score_on == "rewound":
            self.rewind.apply_(network)
        with preserved_rng(device_of(network)):  # a loader of the user's may draw its order
            seed_everything(derive_seed(self.options.seed, "score", number), device_of(network))
            proposal = self.method.propose(
                network,
                self.task.train,
                count,
                Situation(
                    history=self.steps,
                    listener=self.listener,
                    recall=partial(self._recall, number),
                    rehearse=self.task.rehearsal(number, dense),
                ),
            )
        if proposal is None:
            return None
        proposal.apply(network)
        if self.options.move_padding and self.options.epochs:
            self._ready_to_merge(network, number)
        self.rewind.apply_(network)
        self.listener.stage(number, "evaluate")
        before = self.task.top1_val(network)
        notes, energy = self._train(network, number, self.options.epochs, teacher=dense)
        self._keep(
            network,
            dense,
            started,
            operation=proposal.operation,
            names=proposal.names,
            scores=dict(proposal.scores),
            settled=proposal.scores.settled,
            top1_val_before=before,
            epochs=self.options.epochs,
            notes=(*proposal.notes, *notes),
            energy=energy,
        )
        return network

    def _recall(
        self, number: int, name: str, measure: Callable[[], Any], *, together: bool = False
    ) -> Any:
        def figures() -> Any:
            return from_main(measure() if together or is_main() else None)

        return figures() if self.run is None else self.run.recall(number, name, figures)

    def _ready_to_merge(self, network: Network, number: int) -> None:
        """Move padding where layers that are now linear can then become one, and faster."""
        batch, runtime = self.options.latency_batch, self.options.runtime
        pairs = self._recall(
            number,
            "paddings",
            lambda: find_movable_paddings(network, batch=batch, runtime=runtime),
        )
        move_paddings_(network, pairs)

    def _fine_tuned(self, best: Network, dense: Network, stopped: str) -> Network:
        """Train the result for the last time; returns it if it is not worse, else as it was."""
        begun, epochs = self._chosen(), self.options.final_epochs
        if epochs == 0 or begun.step == 0:
            return best
        started, number = time.perf_counter(), len(self.steps)
        network = best.copy()
        try:
            notes, energy = self._train(
                network, number, epochs, teacher=dense, lr=self.options.final_lr
            )
        except TrainingError as error:
            self.notes.append(f"the last fine-tuning failed, the result is as before it: {error}")
            self.listener.note(self.notes[-1])
            return best
        step = self._keep(
            network,
            dense,
            started,
            operation="fine-tune",
            top1_val_before=begun.metrics.top1_val,
            epochs=epochs,
            notes=notes,
            energy=energy,
            ended=stopped,
            least=begun.metrics.top1_val,
        )
        return network if step.within else best

    def _train(
        self,
        network: Network,
        number: int,
        epochs: int,
        teacher: Network | None,
        lr: float | None = None,
    ) -> tuple[tuple[str, ...], Mapping[str, Any] | None]:
        """Train in place; returns remarks, and what it took if there is a meter."""
        if epochs == 0:
            return (), None
        self.listener.stage(number, "fine-tune" if number else "train")
        with nullcontext(Spent()) if self.meter is None else self.meter.training() as spent:
            notes = self.task.fine_tune(
                network,
                number,
                epochs,
                lr=lr,
                teacher=teacher,
                checkpoint=self.run.checkpoint(number) if self.run is not None else None,
                listener=self.listener,
                on_epoch=None if number else lambda report: self.rewind.remember(network, report),
            )
        return notes, spent.energy

    def _keep(
        self,
        network: Network,
        dense: Network,
        started: float,
        *,
        operation: str,
        epochs: int,
        least: float | None = None,
        **known: Any,
    ) -> Step:
        """Measure and write down a network as the next step.

        Args:
            network: to measure.
            dense: to measure it against.
            started: when the step was begun, by `time.perf_counter`.
            operation: what was done.
            epochs: of training.
            least: the accuracy that the step has to have besides the one that is allowed.
            **known: further fields of the step.
        """
        number = len(self.steps)
        self.listener.stage(number, "evaluate")
        metrics, ratio = from_main(self.task.measure(network, dense))  # all decide alike by it
        top1_dense = self.steps[0].metrics.top1_val if self.steps else metrics.top1_val
        allowed = max(top1_dense - self.options.max_drop, least or 0.0)
        step = Step(
            step=number,
            operation=operation,
            metrics=metrics,
            sites_left=network.sites_left,
            epochs=epochs,
            seconds=time.perf_counter() - started,
            latency_ratio=ratio.median,
            latency_ratio_low=ratio.low,
            latency_ratio_high=ratio.high,
            within=metrics.top1_val >= allowed - 1e-9,
            **known,
        )
        if self.run is not None:
            self.run.save_step(step, network)
        self.steps.append(step)
        self.listener.step(step, resumed=False)
        return step

    def _removed(self, network: Network) -> int:
        """Return how many rectifiers, or blocks where the method counts these, are gone."""
        if self.method.unit == "rectifiers":
            return self.base.sites_left - network.sites_left
        done = network.plan.operations[len(self.base.plan.operations) :]
        return sum(len(op.names) for op in done if op.kind == "drop")

    # ------------------------------------------------------------------ the end

    def _stopped(self, network: Network) -> str:
        left = len(self.method.candidates(network))
        return why_stop(self.options, self.steps, removed=self._removed(network), left=left)

    def _result(self, dense: Network, best: Network, stopped: str) -> Result:
        ending = self._known_ending(stopped)
        if ending is None:
            ending = self._ending(dense, best, stopped)
        first, final = self._final_metrics(ending)
        return Result(
            model=best,
            merged=ending.merged,
            merge=ending.report,
            steps=tuple(self.steps),
            dense=first,
            final=final,
            latency=ending.latency,
            removed=self._removed(best),
            total=self.total,
            unit=self.method.unit,
            stopped=stopped,
            notes=tuple(self.notes),
            energy=ending.energy,
        )

    def _known_ending(self, stopped: str) -> Ending | None:
        """Return the end of the search from the run's folder, where it was reached before."""
        if self.run is None:
            return None
        return self.run.ended(self.base, self.steps, stopped, energy=self.meter is not None)

    def _ending(self, dense: Network, best: Network, stopped: str) -> Ending:
        """Merge the result, measure it, and write it down."""
        number = self._chosen().step
        if self.run is not None:
            self.run.keep_best(best)
        self.listener.stage(number, "measure")
        ending = None
        if self.run is None or is_main():  # with a folder, the others read what is written
            ending = self.task.ending(dense, best)
        if self.meter is not None:
            self.listener.stage(number, "measure energy")
            energy = self.meter.summary(dense, best, self.steps, self.task)
            ending = None if ending is None else replace(ending, energy=energy)
        if self.run is None:
            assert ending is not None
            return ending
        if ending is not None:
            self.run.finish(
                ending,
                *self._final_metrics(ending),
                self.steps,
                removed=self._removed(best),
                total=self.total,
                unit=self.method.unit,
                stopped=stopped,
                notes=self.notes,
            )
        barrier()
        known = self._known_ending(stopped)
        if known is None:
            raise RunError(f"'{self.run.folder}' cannot be read back: give the command again")
        return known

    def _chosen(self) -> Step:
        return chosen(self.steps)

    def _final_metrics(self, ending: Ending) -> tuple[Metrics, Metrics]:
        """Return the figures of dense and result, with latencies from the same rounds."""
        dense, result = (ending.latency[name] for name in ("dense_ms", "result_ms"))
        return (
            replace(self.steps[0].metrics, latency_ms=dense),
            replace(self._chosen().metrics, latency_ms=result),
        )
