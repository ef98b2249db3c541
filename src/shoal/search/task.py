"""What a search works on: data, training and the measuring of one task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.data.batch import split_batch
from shoal.errors import CheckpointError, DataError, TrainingError
from shoal.measure import Latency, Ratio, benchmark, latency_in, latency_ratio
from shoal.merge.merge import merge_
from shoal.models import check_finite
from shoal.modes import device_of
from shoal.network import Network
from shoal.onednn import safe_convolutions
from shoal.runtimes import EAGER
from shoal.search.ending import Ending, end_of, folded
from shoal.search.legacy import Search
from shoal.search.listener import Listener
from shoal.search.records import Metrics
from shoal.search.rehearsal import FirstBatches
from shoal.training import EpochReport, derive_seed, evaluate, fit

__all__ = ["REHEARSAL_BATCHES", "Task"]

REHEARSAL_BATCHES = 20


class Task:
    """Trains, evaluates and measures networks for a search, alike at every step.

    Args:
        train: training batches; scoring reads them without shuffling and augmentation where the
            loader can (`plain`).
        val: validation batches: all choices follow from them.
        test: test batches, reported only.
        search: the options.
        custom_fit: trains a network in place of the built-in trainer.
        teacher: the dense network, for distillation.
    """

    def __init__(
        self,
        train: Iterable[Any],
        val: Iterable[Any],
        test: Iterable[Any] | None,
        search: Search,
        custom_fit: Callable[[Network], object] | None = None,
    ) -> None:
        self.train = train
        self.val = val
        self.test = test
        self.search = search
        self.custom_fit = custom_fit
        self._inputs: tuple[tuple[Tensor, ...], dict[str, Tensor]] | None = None
        self._dense: tuple[Network, Network] | None = None  # as it is, and folded

    def fine_tune(
        self,
        network: Network,
        step: int,
        epochs: int,
        *,
        lr: float | None = None,
        teacher: Network | None,
        checkpoint: Path | None,
        listener: Listener,
        on_epoch: Callable[[EpochReport], None] | None = None,
    ) -> tuple[str, ...]:
        """Train a network in place; returns remarks of the trainer.

        `lr` takes the place of the recipe's; `on_epoch` hears of each epoch before the listener
        does.

        Raises:
            TrainingError: the loss is not finite; the network then has its former weights. Or the
                user's own training left weights that are not finite.
        """
        if epochs == 0:
            return ()
        if self.custom_fit is not None:
            with safe_convolutions(network) as notes:
                self.custom_fit(network)
            try:
                check_finite(network)
            except CheckpointError as error:
                raise TrainingError(f"after your own training {error}") from error
            return tuple(notes)

        def heard(report: EpochReport) -> None:
            if on_epoch is not None:
                on_epoch(report)
            listener.epoch(report, epochs)

        report = fit(
            network,
            self.train,
            epochs=epochs,
            seed=derive_seed(self.search.seed, "step", step),
            first_epoch=self._first_epoch(step),
            val=self.val if self.search.recipe.early_stop is not None else None,
            checkpoint=checkpoint,
            on_epoch=heard,
            on_batch=lambda r: listener.batch(r, epochs),
            **self._training(network, teacher, lr),
        )
        return report.notes

    def rehearsal(self, step: int, teacher: Network) -> Callable[[Network], object] | None:
        """Return what fine-tunes a network of a step for a few optimizer steps.

        None where there is no fine-tuning, or where the user's own function does it.
        """
        if self.custom_fit is not None or self.search.epochs == 0:
            return None
        few = FirstBatches(self.train, REHEARSAL_BATCHES)

        def rehearse(network: Network) -> None:
            options = self._training(network, teacher)
            options["recipe"] = replace(options["recipe"], early_stop=None)
            seed = derive_seed(self.search.seed, "rehearsal", step)
            fit(network, few, epochs=1, seed=seed, first_epoch=self._first_epoch(step), **options)

        return rehearse

    def _first_epoch(self, step: int) -> int:
        return self.search.dense_epochs + (step - 1) * self.search.epochs if step else 0

    def _training(
        self, network: Network, teacher: Network | None, lr: float | None = None
    ) -> dict[str, Any]:
        recipe = self.search.recipe
        if lr is not None:
            recipe = replace(recipe, lr=lr)
        if teacher is None:  # the dense network: nobody is there to learn from
            recipe = replace(recipe, distill=0.0)
        return {
            "recipe": recipe,
            "teacher": teacher if recipe.distill > 0 else None,
            "device": device_of(network),
        }

    def top1_val(self, network: Network) -> float:
        """Return the validation accuracy in percent."""
        return evaluate(network, self.val).top1

    def measure(self, network: Network, dense: Network) -> tuple[Metrics, Ratio]:
        """Return all figures of a network, and the ratio of dense's latency to its own.

        The figures are those of the network as it is trained. The ratio is of dense with its batch
        norms folded to the network merged, from the same rounds: folding counts as no gain.
        """
        top1_val = self.top1_val(network)
        top1_test = evaluate(network, self.test).top1 if self.test is not None else None
        inputs = self.example(self.search.latency_batch, device_of(network))
        result = benchmark(network, inputs, min_seconds=0.3, max_seconds=20.0)
        latency = result.latency
        if self.search.runtime != EAGER:
            latency = self._timed({"own": network}, inputs)["own"]
        metrics = Metrics(
            top1_val=top1_val,
            top1_test=top1_test,
            macs=result.macs,
            params=result.params,
            depth=result.depth or 0,
            latency_ms=latency.median_ms,
        )
        if network is dense:
            return metrics, Ratio.of([1.0], [1.0])
        return metrics, self._ratio(network, dense, inputs)

    def _ratio(self, network: Network, dense: Network, inputs: Any) -> Ratio:
        batch, runtime = self.search.latency_batch, self.search.runtime
        if self._dense is None or self._dense[0] is not dense:
            self._dense = dense, folded(dense, batch)
        merged = network.copy()
        merge_(merged, batch=batch, runtime=runtime)
        timed = self._timed({"dense": self._dense[1], "own": merged}, inputs)
        return latency_ratio(timed["dense"], timed["own"])

    def _timed(self, networks: Mapping[str, Network], inputs: Any) -> dict[str, Latency]:
        return latency_in(self.search.runtime, networks, inputs, min_seconds=0.3, max_seconds=20.0)

    def ending(self, dense: Network, best: Network) -> Ending:
        """Return the result merged, and measured beside dense."""
        batch, runtime = self.search.latency_batch, self.search.runtime
        inputs = self.example(batch, device_of(best))
        return end_of(dense, best, inputs, batch=batch, runtime=runtime, loader=self.val)

    def example(self, batch: int, device: torch.device) -> Any:
        """Return `batch` samples of the validation data, repeated if there are fewer."""
        if self._inputs is None:
            first = next(iter(self.val), None)
            if first is None:
                raise DataError("the validation data are empty: give at least one batch")
            whole = split_batch(first)
            self._inputs = whole.args, whole.kwargs

        def take(value: Tensor) -> Tensor:
            times = -(-batch // len(value))
            return value.repeat(times, *[1] * (value.dim() - 1))[:batch].to(device)

        args, kwargs = self._inputs
        if kwargs:
            return {name: take(value) for name, value in kwargs.items()}
        return tuple(map(take, args))
