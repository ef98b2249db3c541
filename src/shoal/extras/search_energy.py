"""What a search spends on training, and what its result spares: energy, CO2 and time.

Jordao et al. 2023 report the cost of training and of inference of dense and pruned
networks. Here an epoch of training and 1,000 inferences of both are measured at the end of the
search, in turn, and the training that the search itself did is measured as it happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from shoal.distributed import is_main, sum_across
from shoal.errors import ConfigError, ShoalError
from shoal.extras.energy import Energy, EnergyMeter, inference_energy, total_energy
from shoal.modes import device_of
from shoal.network import Network
from shoal.search.coach import FirstBatches
from shoal.search.job import Job
from shoal.search.lab import Lab
from shoal.search.records import Step
from shoal.search.setup import Spent
from shoal.training import fit

_IMAGES = 1000
_ROUNDS = 2  # dense and result in turn, so that a busy moment of the machine strikes both
_SECONDS = 3.0  # of each network in each round; counters and the load are read once a second
_WARM_UP = 3  # batches


def meter_of(job: Job) -> SearchEnergy | None:
    """Return the meter that a job asks for; None for one that measures no energy.

    Raises:
        ConfigError: a country is given without energy, or there is no such country.
        ShoalError: codecarbon is not installed.
    """
    if job.energy:
        return SearchEnergy(job.country)
    if job.country is not None:
        raise ConfigError("country is given without energy: add energy=True")
    return None


class SearchEnergy:
    """Measures the energy of a search: pass it to `shoal.compress` as `meter`.

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
        """Measure what the whole machine does in the `with` block."""
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

        Returns:
            JSON values: `training` of the search (None if no step's was measured; one that an
            interrupted call had begun is not), `epoch` of
            either network (None if a user's own function trains, or training fails), and
            `inference` of 1,000 samples of either; `training_time_saved_percent` of an epoch;
            `estimated` and `source` say how the figures are known.
        """
        networks = {"dense": dense, "result": best}
        epoch, inference = self._epochs(networks, lab), self._inference(networks, lab)
        measured = [Energy.from_dict(step.energy) for step in steps if step.energy is not None]
        training = None
        if measured:
            counts = {"steps": len(measured), "of_steps": sum(step.epochs > 0 for step in steps)}
            training = _figures(total_energy(measured)) | counts
        saved = None
        if epoch:
            saved = 100.0 * (1.0 - epoch["result"].seconds / epoch["dense"].seconds)
        one = inference.get("dense")
        batch = {"samples": _IMAGES, "batch": lab.machine.batches[0]}
        return {
            "training": training,
            "epoch": {name: _figures(energy) for name, energy in epoch.items()} or None,
            "inference": batch | {name: _figures(energy) for name, energy in inference.items()},
            "training_time_saved_percent": saved,
            "estimated": one.estimated if one is not None else None,
            "source": one.source if one is not None else "",
        }

    def _inference(self, networks: Mapping[str, Network], lab: Lab) -> dict[str, Energy]:
        if not is_main():
            return {}

        def measure(name: str) -> Energy:
            network = networks[name]
            inputs = lab.data.example(lab.machine.batches[0], device_of(network))
            return inference_energy(
                network, inputs, images=_IMAGES, country=self.country, min_seconds=_SECONDS
            )

        return _in_turn(networks, measure)

    def _epochs(self, networks: Mapping[str, Network], lab: Lab) -> dict[str, Energy]:
        """Return the energy of an epoch of each network; empty if it cannot be known."""
        if lab.setup.fit is not None:
            return {}

        def measure(name: str) -> Energy | None:
            batches, epochs = amounts[name]
            with self.training() as spent:
                _train(networks[name], lab, batches, epochs)
            if spent.energy is None:
                return None
            return Energy.from_dict(spent.energy).scaled(lab.batches / (batches * epochs))

        try:
            amounts = {name: _amount(network, lab) for name, network in networks.items()}
            return _in_turn(networks, measure)
        except ShoalError:  # the search has its result: this is no reason to lose it
            return {}


def _in_turn(
    networks: Mapping[str, Network], measure: Callable[[str], Energy | None]
) -> dict[str, Energy]:
    """Return the means of a few rounds; nothing in a process that does not measure."""
    parts: dict[str, list[Energy]] = {name: [] for name in networks}
    for _ in range(_ROUNDS):
        for name, found in parts.items():
            energy = measure(name)
            found += [] if energy is None else [energy]
    return {name: total_energy(found).scaled(1 / _ROUNDS) for name, found in parts.items() if found}


def _amount(network: Network, lab: Lab) -> tuple[int, int]:
    """Return in how many batches and epochs training takes long enough; alike everywhere."""
    warm_up = min(_WARM_UP, lab.batches)
    _train(network, lab, warm_up, 1)
    started = time.perf_counter()
    _train(network, lab, warm_up, 1)
    wanted = math.ceil(warm_up * _SECONDS / (time.perf_counter() - started))
    wanted = int(sum_across(torch.tensor(wanted if is_main() else 0)))
    return min(wanted, lab.batches), math.ceil(wanted / lab.batches)


def _train(network: Network, lab: Lab, batches: int, epochs: int) -> None:
    """Train a copy on so many batches, as the search does but without a teacher."""
    fit(
        network.copy(),
        FirstBatches(lab.data.train, batches),
        epochs=epochs,
        recipe=replace(lab.recipe, distill=0.0, early_stop=None),
        seed=lab.options.seed,
        device=device_of(network),
        task=lab.setup.task,
    )


def _figures(energy: Energy) -> dict[str, float]:
    return {"wh": energy.wh, "co2_g": energy.co2_g, "seconds": energy.seconds}
