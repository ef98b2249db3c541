"""Image and text classifiers of the package transformers, from the Hugging Face hub.

Only files of data are fetched and read; a repository that needs code of its own is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.compat import import_transformers
from shoal.errors import ConfigError, one_line
from shoal.hub import download, repository
from shoal.quiet import quietly

_IMAGES, _TEXT = "ForImageClassification", "ForSequenceClassification"
_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_LONGEST = 128  # tokens of an example


def classifier(name: str) -> Callable[..., nn.Module]:
    """Return what builds the classifier of a repository `hf:ORG/NAME`, with its weights.

    With a `num_classes` that is not the repository's, the last layer is new. Other keyword
    arguments are of the model's configuration, such as `attn_implementation="eager"`.

    Raises:
        ShoalError: transformers is not installed.
        FileError: there is no such repository, or it cannot be reached.
        ConfigError: it holds neither an image nor a text classifier, or needs code of its own.
    """
    config = _read(name, "config.json")
    if not config:
        raise ConfigError(f"'{name}' has no config.json: it is no model of transformers")
    if "auto_map" in config and config.get("model_type") not in _known_types():
        raise ConfigError(f"'{name}' needs code of its own, and no code from the hub is run")
    kind = _kind(name, config)

    def build(num_classes: int | None = None, **kwargs: Any) -> nn.Module:
        own = {} if num_classes in (None, classes_of(name)) else {"num_labels": num_classes}
        loader = getattr(import_transformers(), f"AutoModel{kind}")
        try:
            with quietly():
                model = loader.from_pretrained(
                    _weights(name),
                    local_files_only=True,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    dtype=torch.float32,
                    **own,
                    **kwargs,
                )
        except (OSError, ValueError, TypeError, KeyError, ImportError) as error:
            why = one_line(str(error), 160)
            raise ConfigError(f"'{name}' cannot be built by transformers: {why}") from error
        model.config.use_cache = False  # of text: a cache for more tokens is no answer
        assert isinstance(model, nn.Module)
        return model.eval()

    return build


def classes_of(name: str) -> int | None:
    """Return how many classes the weights of a repository are for; None if for no classes."""
    config = _read(name, "config.json")
    if not any(kind in each for each in _architectures(config) for kind in (_IMAGES, _TEXT)):
        return None
    return len(config.get("id2label") or {}) or int(config.get("num_labels", 2))


def normalisation_of(name: str) -> dict[str, tuple[float, ...]]:
    """Return the `mean` and `std` that a repository's images were normalised by, if it says so."""
    told = _read(name, "preprocessor_config.json")
    if told.get("do_normalize") is False:
        return {"mean": (0.0,), "std": (1.0,)}
    found = {own: tuple(told.get(f"image_{own}") or ()) for own in ("mean", "std")}
    return found if all(found.values()) else {}


def usual_inputs(
    name: str, model: nn.Module, shape: tuple[int, ...] | None = None, size: int | None = None
) -> Any:
    """Return a batch of two that a repository's classifier takes.

    Images are a tensor `[2, C, H, W]`, text is a dict of `input_ids` and `attention_mask` `[2, L]`.
    `shape` is that of one sample, `(C, H, W)` or `(L,)`; None takes what is usual for the model,
    with images of `size` pixels if that is given.
    """
    config: Any = model.config
    random = torch.Generator().manual_seed(0)
    if _kind(name, _read(name, "config.json")) == _IMAGES:
        height, width = (size, size) if size else _image_size(name, config)
        shape = shape or (int(getattr(config, "num_channels", 3)), height, width)
        return torch.randn(2, *shape, generator=random)
    # Positions of some models begin after the padding token's.
    room = int(getattr(config, "max_position_embeddings", None) or _LONGEST + 2) - 2
    length = shape[0] if shape else min(_LONGEST, room)
    ids = torch.randint(1, int(config.vocab_size), (2, length), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _image_size(name: str, config: Any) -> tuple[int, int]:
    told = _read(name, "preprocessor_config.json")
    for size in (told.get("crop_size"), getattr(config, "image_size", None), told.get("size")):
        if isinstance(size, int):
            return size, size
        if isinstance(size, (list, tuple)) and len(size) == 2:
            return int(size[0]), int(size[1])
        if isinstance(size, dict) and "height" in size and "width" in size:
            return int(size["height"]), int(size["width"])
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return 224, 224


def _kind(name: str, config: Mapping[str, Any]) -> str:
    """Return what a repository's model can be: by its own word, or by what transformers has."""
    for each in _architectures(config):
        for kind in (_IMAGES, _TEXT):
            if each.endswith(kind):
                return kind
    auto = import_transformers().models.auto.modeling_auto
    known = {
        _IMAGES: auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        _TEXT: auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    for kind, names in known.items():
        if config.get("model_type") in names:
            return kind
    what = ", ".join(_architectures(config)) or config.get("model_type") or "nothing known"
    raise ConfigError(f"'{name}' holds no image or text classifier but {what}")


def _architectures(config: Mapping[str, Any]) -> list[str]:
    return [str(each) for each in config.get("architectures") or ()]


def _known_types() -> Mapping[str, Any]:
    found: Mapping[str, Any] = import_transformers().CONFIG_MAPPING
    return found


def _read(name: str, file: str) -> dict[str, Any]:
    """Return what a JSON file of a repository says; nothing if it has none."""
    path = download(repository(name), _DESCRIPTIONS) / file
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"'{name}' has a {file} that is no JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _weights(name: str) -> Path:
    """Return the folder with a repository's weights, pickled only where there are no others."""
    folder = download(repository(name), (*_DESCRIPTIONS, *_WEIGHTS))
    if any(folder.glob("*.safetensors")):
        return folder
    folder = download(repository(name), (*_DESCRIPTIONS, *_PICKLED))
    if not any(folder.glob("pytorch_model*.bin")):
        raise ConfigError(f"'{name}' holds no weights for PyTorch: it has no *.safetensors")
    return folder
