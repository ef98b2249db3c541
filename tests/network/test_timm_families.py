"""At least 95 of timm's 98 families are captured, saved and loaded, to the bit."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from network_checks import (
    evaluate,
    reloading_differences,
    same,
    settled,
    timm_library,
    training_differences,
)
from torch import Tensor, nn

from shoal.network import capture

_SIZES = (  # smallest first, as words of a model's name
    "atto", "femto", "pico", "nano", "xxs", "xxs24", "xxtiny", "xtiny", "xs", "tiny", "mini",
    "002", "050", "b0", "m0", "s0", "small", "slim", "s", "s16", "18",
)  # fmt: skip
_LARGE = 60e6  # parameters; such a transformer is taken with two of its blocks
_DEEP = 220  # layers; such a model is taken with fewer of its equal blocks, where it has the option
_SMALLER_IMAGES: tuple[dict[str, Any], ...] = (
    {"img_size": 96, "depth": 2}, {"img_size": 128, "depth": 2}, {"img_size": 112, "depth": 2},
    {"img_size": 128},
)  # fmt: skip
_FEWER_BLOCKS: tuple[dict[str, Any], ...] = (
    {"depth": 2}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)},
)  # fmt: skip
_REFUSALS = (TypeError, AssertionError, RuntimeError, ValueError, IndexError, StopIteration)


def families() -> dict[str, str]:
    """Return one model, a small one by its name, of each of timm's model files."""
    timm = timm_library()
    found: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models(exclude_filters="test_*"):
        found[timm.models._registry._model_to_module[name]].append(name)
    return {family: min(names, key=_size) for family, names in found.items()}


def _size(name: str) -> tuple[int, int, str]:
    """Return a key that is lower the smaller a model is, as far as its name tells."""
    words = name.split("_")
    fits = (
        any(w == size or (size.isdigit() and w.endswith(size)) for w in words) for size in _SIZES
    )
    return next((i for i, fit in enumerate(fits) if fit), len(_SIZES)), len(name), name


def small_model(name: str) -> tuple[nn.Module, Tensor]:
    """Return the model and two images, as small as the model takes them."""
    timm = timm_library()
    for options in (*_smaller(name), {}):
        torch.manual_seed(0)
        try:
            model = settled(timm.create_model(name, pretrained=False, **options)).eval()
        except _REFUSALS:
            continue
        channels, height, _ = model.default_cfg["input_size"]
        for size in (96, 112, 128, options.get("img_size", 256), height):
            images = torch.randn(2, channels, size, size)
            try:
                evaluate(model, images)
            except _REFUSALS:
                continue
            return model, images
    raise ValueError(f"no image size fits {name}")


def _smaller(name: str) -> tuple[dict[str, Any], ...]:
    """Return the options to try first, so that a large or deep model does not take minutes."""
    with torch.device("meta"):
        try:
            model = timm_library().create_model(name)
        except _REFUSALS:
            return ()
    large = sum(p.numel() for p in model.parameters()) > _LARGE
    deep = sum(not module._modules for module in model.modules()) > _DEEP
    return (*(_SMALLER_IMAGES if large else ()), *(_FEWER_BLOCKS if deep else ()))


def outcome(name: str) -> str:
    """Return "" if a model is captured to the bit, else what went wrong."""
    try:
        model, images = small_model(name)
        network = capture(model, images)
        if not same(evaluate(model, images), evaluate(network, images)):
            return "differs in eval mode"
        if set(model.state_dict()) != set(network.state_dict()):
            return "other keys"
        wrong = training_differences(model, network, images)
        wrong += [f"{what}, reloaded" for what in reloading_differences(network, images)]
        return ", ".join(wrong[:2])
    except Exception as error:  # counted, and shown
        return f"{type(error).__name__}: {str(error)[:160]}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_timms_families_are_captured_and_reloaded_to_the_bit() -> None:
    wrong: dict[str, Any] = {}
    chosen = families()
    for family, name in sorted(chosen.items()):
        result = outcome(name)
        if result:
            wrong[f"{family}: {name}"] = result
    assert len(wrong) <= 0.03 * len(chosen) + 0.5, wrong
