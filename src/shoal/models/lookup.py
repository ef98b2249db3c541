"""Models by name: `resnet18`, `timm:NAME`, `hf:ORG/NAME`, and the factories of users."""

from __future__ import annotations

import difflib
import functools
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from shoal.compat import import_timm, import_torchvision, with_torchvision
from shoal.errors import ConfigError, one_line, unknown_name
from shoal.models.checkpoint import load_checkpoint
from shoal.models.from_hub import classifier
from shoal.models.plain_name import is_plain, libraries_of
from shoal.models.weights_file import SUFFIXES
from shoal.registry import Registry
from shoal.targets import accepts, call_target, format_target, import_target, is_path, parse_target

_LIBRARIES = ("torchvision", "timm", "hf", "shoal")
_GRAMMAR = (
    "write resnet18, torchvision:NAME, timm:NAME, hf:ORG/NAME, shoal:NAME, path/file.py:factory or "
    "package.module:factory"
)

M = TypeVar("M", bound=Callable[..., nn.Module])

models: Registry[Callable[..., nn.Module]] = Registry("model", "shoal.models")


def register_model(name: str) -> Callable[[M], M]:
    """Return a decorator that makes a function that builds a model known as `shoal:name`.

    Example:
        >>> import shoal, torch
        >>> @shoal.register_model("linear")
        ... def linear(width=8, num_classes=10):
        ...     return torch.nn.Linear(width, num_classes)
        >>> shoal.models.build_model("shoal:linear?width=3")
        Linear(in_features=3, out_features=10, bias=True)
    """
    return models.register(name)  # type: ignore[return-value]


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, taken apart."""

    kind: str  # "torchvision", "timm", "hf", "shoal", "file" or "module"
    name: str  # of the model in its library, or of the factory with its file or module
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # of the factory
    note: str = field(default="", compare=False)  # what the user should know of the choice

    @property
    def target(self) -> str:
        """The text without the keyword arguments."""
        return f"{self.kind}:{self.name}" if self.kind in _LIBRARIES else self.name

    @property
    def published(self) -> bool:
        """Whether its library publishes weights."""
        return self.kind in ("torchvision", "timm", "hf")

    @property
    def downloads(self) -> bool:
        """Whether building it fetches pretrained weights, unless the library has them already."""
        asked = self.kwargs.get("pretrained") or self.kwargs.get("weights")
        return self.kind == "hf" or (self.published and bool(asked))

    @property
    def text(self) -> str:
        """The text that `parse_spec` reads back as this."""
        return format_target(self.target, self.kwargs)


def parse_spec(text: str) -> ModelSpec:
    """Take apart `SOURCE:NAME?key=value&…`; nothing is imported, except for a plain name.

    A name without a source, such as `resnet50`, is looked for in torchvision, then in timm, then
    among shoal's own; if several have it, the spec's `note` says so.
    """
    target, kwargs = parse_target(text)
    library, colon, name = target.partition(":")
    if library in _LIBRARIES:
        if not name:
            raise ConfigError(f"'{text}' names no model: write {library}:NAME")
        return ModelSpec(library, name, kwargs)
    source, _, factory = target.rpartition(":")
    if is_path(source):
        return ModelSpec("file", target, kwargs)
    if not colon or not factory:
        path = Path(target.rstrip(":"))
        if path.suffix == ".py":
            raise ConfigError(
                f"'{target}' names no factory: write {path}:NAME, with the name of a function or "
                "class in it"
            )
        if path.suffix in SUFFIXES:
            raise ConfigError(
                f"'{target}' is a file of weights, which holds no architecture: "
                f"name the model ({_GRAMMAR[6:]}) and pass this file as the checkpoint"
            )
        if not colon and is_plain(target):
            return _of_plain_name(target, kwargs)
        raise ConfigError(
            f"'{target}' is no folder here, and does not say where the model comes from: {_GRAMMAR}"
        )
    near = difflib.get_close_matches(source.lower(), _LIBRARIES, n=1, cutoff=0.7)
    if near and "." not in source and not _is_module(source):
        raise unknown_name("source of models", source, _LIBRARIES)
    return ModelSpec("module", target, kwargs)


def _of_plain_name(name: str, kwargs: Mapping[str, Any]) -> ModelSpec:
    library, *others = libraries_of(name, models.names())
    note = ""
    if others:
        rest = " and ".join(f"{other}:{name}" for other in others)
        note = f"{name} is taken from {library}; to have another one, write {rest}"
    return ModelSpec(library, name, kwargs, note)


def build_model(
    spec: str | ModelSpec, *, num_classes: int | None = None, in_channels: int | None = None
) -> nn.Module:
    """Build the model that `spec` names.

    `num_classes` and `in_channels` come from the data and yield to what the spec says itself. They
    are passed to timm's and shoal's models, `num_classes` to torchvision's, and to the user's
    factory where it has parameters of these names. torchvision with `weights=NAME` (or
    `pretrained=true`) is built with its own head, which is then replaced by a fresh one if the
    number of classes differs.

    Raises:
        NameNotFoundError: there is no such source, model, factory or set of weights.
        ConfigError: the factory cannot be imported, takes other arguments, raises an error, or
            does not return an `nn.Module`.
        ShoalError: torchvision or timm is needed and not installed.
    """
    spec = complete_spec(spec, num_classes=num_classes, in_channels=in_channels)
    try:
        model = call_target(_factory(spec), spec.kwargs, spec.target, with_torchvision)
    except ConfigError as error:
        fetched = spec.downloads and spec.kind != "hf"
        if fetched and isinstance(error.__cause__, OSError):  # as libraries of the net raise
            raise ConfigError(
                f"the pretrained weights of {spec.target} cannot be downloaded "
                f"({one_line(str(error.__cause__), 120)}): check the network, or give a file of "
                "weights as the checkpoint"
            ) from error
        raise
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{spec.target} returned an object of type {type(model).__name__}: "
            "a model's factory must return a torch.nn.Module"
        )
    return model


def complete_spec(
    spec: str | ModelSpec,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    pretrained: bool = False,
) -> ModelSpec:
    """Return the spec with the arguments that `build_model` would add, so that it stands alone.

    With `pretrained` it asks for the weights that torchvision or timm publish, which it fetches
    (those of the hub always come with theirs);
    raises `ConfigError` for a model of anybody else.
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if pretrained and not spec.published:
        raise ConfigError(
            f"pretrained is for models of torchvision and timm, and {spec.target} is none: give a "
            "file of weights as the checkpoint"
        )
    if pretrained and not spec.downloads:
        spec = replace(spec, kwargs={**spec.kwargs, "pretrained": True})
    factory = _factory(spec)
    kwargs = dict(spec.kwargs)
    # timm's name for the channels; its factories hide both names behind **kwargs.
    channels = "in_chans" if spec.kind == "timm" else "in_channels"
    for key, value in (("num_classes", num_classes), (channels, in_channels)):
        if value is not None and (spec.kind == "timm" or accepts(factory, key)):
            kwargs.setdefault(key, value)
    return replace(spec, kwargs=kwargs)


def load_model(
    spec: str | ModelSpec,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> nn.Module:
    """Build a model as `build_model` does, and load its weights as `load_checkpoint` does."""
    model = build_model(spec, num_classes=num_classes, in_channels=in_channels)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    return model


def _factory(spec: ModelSpec) -> Callable[..., Any]:
    if spec.kind == "torchvision":
        return _torchvision_factory(spec.name)
    if spec.kind == "timm":
        return _timm_factory(spec.name)
    if spec.kind == "hf":
        return classifier(spec.target)
    if spec.kind == "shoal":
        return models[spec.name]
    factory = import_target(spec.name, with_torchvision)
    if isinstance(factory, nn.Module):
        raise ConfigError(f"{spec.name} is a model, not a factory: name a function that returns it")
    return factory


def _torchvision_factory(name: str) -> Callable[..., nn.Module]:
    api = import_torchvision().models
    classifiers = api.list_models(module=api)
    if name not in classifiers:
        if name in api.list_models():
            raise ConfigError(f"torchvision:{name} is not an image classifier: choose one that is")
        raise unknown_name("torchvision model", name, classifiers)

    def build(num_classes: int | None = None, **kwargs: Any) -> nn.Module:
        if kwargs.pop("pretrained", False):
            kwargs.setdefault("weights", "DEFAULT")
        weights = kwargs.get("weights")
        if weights is None:
            own = {} if num_classes is None else {"num_classes": num_classes}
            return api.get_model(name, **own, **kwargs)
        known = list(api.get_model_weights(name).__members__)
        if str(weights).rpartition(".")[2] not in known:
            raise unknown_name(f"set of weights of torchvision:{name}", str(weights), known)
        model = api.get_model(name, **kwargs)
        if num_classes is not None:
            _replace_head(model, num_classes)
        return model

    return build


def _replace_head(model: nn.Module, num_classes: int) -> None:
    """Give a pretrained classifier a fresh last layer, unless it has `num_classes` outputs already.

    Auxiliary classifiers (Inception) end in layers with as many outputs as the last: these go too.
    """
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linears:  # SqueezeNet classifies by a 1x1 convolution
        name, last = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)][-1]
        if last.out_channels != num_classes:
            model.set_submodule(name, nn.Conv2d(last.in_channels, num_classes, kernel_size=1))
        return
    classes = linears[-1][1].out_features
    if classes == num_classes:
        return
    for name, head in linears:
        if head.out_features == classes:
            fresh = nn.Linear(head.in_features, num_classes, bias=head.bias is not None)
            model.set_submodule(name, fresh)


def _timm_factory(name: str) -> Callable[..., nn.Module]:
    timm = import_timm()
    # "hf-hub:user/model" and "local-dir:path" are timm's own to look up.
    if ":" not in name and not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    return functools.partial(timm.create_model, name)


def _is_module(name: str) -> bool:
    """Say whether `import name` would find something, from the current folder too."""
    with suppress(ImportError, ValueError):
        here = Path(f"{name}.py").exists() or Path(name).is_dir()
        return here or importlib.util.find_spec(name) is not None
    return False
