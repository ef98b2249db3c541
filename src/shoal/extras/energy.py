"""Energy and CO2 of training and inference, by the package `codecarbon`, without a network.

Where the machine has no energy counters that may be read, the figure is an estimate from the
processor's load and nominal power; `Energy.estimated` says so.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from shoal.errors import ConfigError, OptionError, missing_extra
from shoal.modes import device_of
from shoal.network.inputs import Inputs, as_call, batch_size, borrowed, map_tensors
from shoal.search.record import Record

# Mean of the world's electricity in 2019 (IEA), as codecarbon takes it where it knows no better.
_WORLD_KG_PER_KWH = 0.475
_AMOUNTS = ("wh", "co2_g", "seconds")
_COUNTERS = ("intel_rapl", "intel_power_gadget", "apple_powermetrics")


@dataclass(frozen=True)
class Energy(Record):
    """What a stretch of work used.

    Attributes:
        wh: energy in watt-hours: processor, memory and GPUs.
        co2_g: the greenhouse gases of making it, in grams of CO2 equivalents.
        seconds: how long the work took.
        estimated: whether the processor's part is an estimate, not read from counters.
        source: where the figure comes from, for people.
    """

    wh: float
    co2_g: float
    seconds: float
    estimated: bool
    source: str

    def scaled(self, factor: float) -> Energy:
        """Return the figures of `factor` times the work."""
        amounts: dict[str, Any] = {name: factor * getattr(self, name) for name in _AMOUNTS}
        return replace(self, **amounts)


def total_energy(parts: Sequence[Energy]) -> Energy:
    """Return the figures of several stretches of work together, one at least."""
    sums: dict[str, Any] = {name: sum(getattr(p, name) for p in parts) for name in _AMOUNTS}
    return replace(parts[0], **sums, estimated=any(part.estimated for part in parts))


class EnergyMeter:
    """Measures what is done inside a `with` block; afterwards `energy` holds the figures.

    It measures the whole machine, with whatever else runs on it at that time.

    Args:
        country: three letters (ISO 3166) of where the electricity is made, for the CO2; None takes
            the world's mean.

    Raises:
        ShoalError: codecarbon is not installed.
        ConfigError: there is no such country.

    Put `with EnergyMeter(country="DEU") as meter:` around a training; `meter.energy.wh` then holds
    its watt-hours.
    """

    def __init__(self, *, country: str | None = None) -> None:
        if country is not None and (len(country) != 3 or not country.isalpha()):
            raise OptionError("country", country, "three letters, such as DEU or BRA")
        try:
            from codecarbon import OfflineEmissionsTracker
        except ImportError:
            raise missing_extra("codecarbon", "energy", "measuring energy") from None
        self._country = country
        self._energy: Energy | None = None
        _quiet()
        self._tracker = OfflineEmissionsTracker(
            country_iso_code=(country or "USA").upper(),
            measure_power_secs=1,
            save_to_file=False,
            log_level="critical",
            allow_multiple_runs=True,
        )

    @property
    def energy(self) -> Energy:
        """The figures of the block; raises `ConfigError` before its end."""
        if self._energy is None:
            raise ConfigError("the energy is known only after the `with` block: read it there")
        return self._energy

    def __enter__(self) -> EnergyMeter:
        _quiet()
        self._tracker.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._tracker.stop()
        if error is not None:
            return  # which is what the caller must see
        data = self._tracker.final_emissions_data
        wh = 1e3 * float(data.energy_consumed)
        grams = 1e3 * float(data.emissions)
        place = f"electricity of {self._country}"
        if self._country is None:
            grams, place = wh * _WORLD_KG_PER_KWH, "the world's mean electricity"
        elif math.isclose(grams, wh * _WORLD_KG_PER_KWH, rel_tol=1e-6):  # its silent fallback
            place = f"the world's mean electricity, as there are no figures for '{self._country}'"
        mode = _processor_mode(self._tracker)
        estimated = mode not in _COUNTERS
        how = f"estimated from the processor's {mode or 'nominal power'}: no counters can be read"
        source = f"codecarbon, {how if estimated else f'read from {mode}'}; {place}"
        self._energy = Energy(wh, grams, float(data.duration), estimated, source)


def inference_energy(
    network: nn.Module,
    inputs: Inputs,
    *,
    images: int = 1000,
    country: str | None = None,
    min_seconds: float = 5.0,
) -> Energy:
    """Measure what inference of a number of images takes.

    Args:
        network: the network; run in eval mode on its own device and left as it is.
        inputs: one batch: a tensor, a tuple of them, or a dict of keyword inputs.
        images: the number of images that the result is for.
        country: as in `EnergyMeter`.
        min_seconds: the work is repeated for at least this long, and scaled: counters are coarse.

    Raises:
        ShoalError: codecarbon is not installed.
        OptionError: `images` is below 1.
    """
    if images < 1:
        raise OptionError("images", images, "1 or more")
    device = device_of(network)
    args, kwargs = as_call(map_tensors(lambda t: t.detach().to(device), inputs))
    size, done = batch_size(inputs), 0
    with borrowed(network), torch.inference_mode():
        network(*args, **kwargs)  # warm-up, unmeasured
        with EnergyMeter(country=country) as meter:
            until = time.perf_counter() + min_seconds
            while done < images or time.perf_counter() < until:
                network(*args, **kwargs)
                done += size
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
    return meter.energy.scaled(images / done)


def _processor_mode(tracker: Any) -> str:
    # codecarbon says only here how it reads the processor's power
    for part in getattr(tracker, "_hardware", ()):
        if type(part).__name__ in ("CPU", "AppleSiliconChip"):
            return str(getattr(part, "_mode", "") or "apple_powermetrics")
    return ""


def _quiet() -> None:
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
