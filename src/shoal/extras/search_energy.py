"""What a search spends on training, and what its result spares: energy, CO2 and time.

Jordao et al. 2023 report the cost of training and of inference of dense and pruned
networks. Here an epoch of training and 1,000 inferences of both are measured at the end of the
search, in turn, and the training that the search itself did is measured as it happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from shoal.data.loader import ImageLoader
from shoal.distributed import is_main, sum_across
from shoal.errors import ShoalError
from shoal.extras.energy import Energy, EnergyMeter, inference_energy, total_energy
from shoal.modes import device_of
from shoal.network import Network
from shoal.search.lab import Lab
from shoal.search.records import Step
from shoal.search.task import Spent
from shoal.training import fit

__all__ = ["SearchEnergy"]

_IMAGES = 1000
_ROUNDS = 2  # dense and result in turn, so that a busy moment of the machine strikes both
_SECONDS = 3.0  # of each network in each round; counters and the load are read once a second
_WARM_UP = 3  # batches


class SearchEnergy:
    """Measures the energy of a search: hand it to `shoal.compress` as `meter`.

    Args:
        country: three letters (ISO 3166) of where the electricity is made; None takes the world's
            mean.

    Raises:
        ShoalError: codecarbon is not installed.
        ConfigError: there is no such country.
    """

    def __init__(self, country: str | None = None) -> None:
        self.country = country
        EnergyMeter(country=country)  # raises what is wrong now, not after the first epoch

    @contextmanager
    def training(self) -> Iterator[Spent]:
        """Measure what is done in the `with` block; the machine as a whole is."""
        spent = Spent()
        if not is_main():  # the others' work is the same machine's
            yield spent
            return
        with EnergyMeter(country=self.country) as meter:
            yield spent
        spent.energy = meter.energy.to_dict()

    def summary(
        self, dense: Network, best: Network, steps: Sequence[Step], lab: Lab
    ) -> dict[str, Any]:
        """Measure dense and result, and put them beside what the search's training took.

        Args:
            dense: the dense network; it is left as it is.
            best: the result; likewise.
            steps: all steps of the search.
            lab: its data and options.

        Returns:
            JSON values: `training` of the search (None if no step's was measured), `epoch` of
            either network (None if a user's own function trains, or training fails), and
            `inference` of 1,000 samples of either; `training_time_saved_percent` of an epoch;
            `estimated` and `source` say how the figures are known.
        """
        networks = {"dense": dense, "result": best}
        epoch = self._epochs(networks, lab)
        inference = self._inference(networks, lab)
        measured = [Energy.from_dict(step.energy) for step in steps if step.energy is not None]
        saved = None
        if epoch:
            saved = 100.0 * (1.0 - epoch["result"].seconds / epoch["dense"].seconds)
        one = inference.get("dense")
        return {
            "training": None
            if not measured
            else {
                **_figures(total_energy(measured)),
                "steps": len(measured),
                "of_steps": sum(step.epochs > 0 for step in steps),
            },
            "epoch": _by_name(epoch) or None,
            "inference": {
                "samples": _IMAGES,
                "batch": lab.machine.latency_batch,
                **_by_name(inference),
            },
            "training_time_saved_percent": saved,
            "estimated": one.estimated if one is not None else None,
            "source": one.source if one is not None else "",
        }

    def _inference(self, networks: Mapping[str, Network], lab: Lab) -> dict[str, Energy]:
        if not is_main():
            return {}
        parts: dict[str, list[Energy]] = {name: [] for name in networks}
        for _ in range(_ROUNDS):
            for name, network in networks.items():
                inputs = lab.data.example(lab.machine.latency_batch, device_of(network))
                found = inference_energy(
                    network, inputs, images=_IMAGES, country=self.country, min_seconds=_SECONDS
                )
                parts[name].append(found)
        return {name: total_energy(found).scaled(1 / _ROUNDS) for name, found in parts.items()}

    # ------------------------------------------------------------------ an epoch of training

    def _epochs(self, networks: Mapping[str, Network], lab: Lab) -> dict[str, Energy]:
        """Return the energy of an epoch of each network; empty if it cannot be known."""
        if lab.task.fit is not None:
            return {}
        parts: dict[str, list[Energy]] = {name: [] for name in networks}
        try:
            plans = {name: self._plan(network, lab) for name, network in networks.items()}
            for _ in range(_ROUNDS):
                for name, network in networks.items():
                    with self.training() as spent:
                        plans[name].train(network, lab)
                    if spent.energy is not None:
                        taken = Energy.from_dict(spent.energy)
                        parts[name].append(taken.scaled(1 / plans[name].share))
        except ShoalError:  # the search has its result: this is no reason to lose it
            return {}
        return {
            name: total_energy(found).scaled(1 / _ROUNDS) for name, found in parts.items() if found
        }

    def _plan(self, network: Network, lab: Lab) -> _Plan:
        """Return how much training takes long enough; alike in all processes."""
        whole = _batches(lab)
        warm_up = _Plan(min(_WARM_UP, whole), 1, whole)
        warm_up.train(network, lab)
        started = time.perf_counter()
        warm_up.train(network, lab)
        wanted = math.ceil(warm_up.batches * _SECONDS / (time.perf_counter() - started))
        wanted = int(sum_across(torch.tensor(wanted if is_main() else 0)))
        return _Plan(min(wanted, whole), math.ceil(wanted / whole), whole)


@dataclass(frozen=True)
class _Plan:
    """How much a network is trained to measure it.

    Attributes:
        batches: in each epoch.
        epochs: how many.
        whole: how many batches an epoch of the search has.
    """

    batches: int
    epochs: int
    whole: int

    @property
    def share(self) -> float:
        """How many of the search's epochs that is."""
        return self.batches * self.epochs / self.whole

    def train(self, network: Network, lab: Lab) -> None:
        """Train a copy, as the search does but without a teacher."""
        loader: Any = lab.data.train
        if isinstance(loader, ImageLoader):
            loader = loader.take(self.batches * loader.batch_size)
        elif self.batches < self.whole:
            loader = list(islice(loader, self.batches))
        recipe = replace(lab.recipe, distill=0.0, early_stop=None)
        fit(
            network.copy(),
            loader,
            epochs=self.epochs,
            recipe=recipe,
            seed=lab.options.seed,
            device=device_of(network),
        )


def _batches(lab: Lab) -> int:
    """Return the number of batches of an epoch."""
    loader: Any = lab.data.train
    return len(loader)


def _figures(energy: Energy) -> dict[str, float]:
    return {"wh": energy.wh, "co2_g": energy.co2_g, "seconds": energy.seconds}


def _by_name(found: Mapping[str, Energy]) -> dict[str, Any]:
    return {name: _figures(energy) for name, energy in found.items()}
