"""What a runtime is: a place where networks run for their users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from shoal.errors import ConfigError, OptionError, ShoalError, nearest_names
from shoal.network import Network
from shoal.network.inputs import Inputs, home_device, resolve_device, tensors_of
from shoal.registry import Registry

EAGER = "eager"


class Runner(ABC):
    """A network made to run somewhere. Called as the network is, it gives its outputs."""

    device: str  # where it runs ("cpu", "cuda:0")
    threads: int  # that it uses on the CPU
    # The device that calls are only handed to, and which a timer must wait for; None where a call
    # returns when it is done
    queue: torch.device | None = None

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs for these inputs."""

    @abstractmethod
    def ready(self, inputs: Inputs) -> AbstractContextManager[Callable[[], object]]:
        """Give, for a while, a call that runs these inputs, converted beforehand, to be timed.

        Raises `ConfigError` if they are not the network's.
        """


class Running(nn.Module):
    """A runner of a network as a module, to be evaluated as that is.

    Outputs come in the network's own form. Those who ask a module's parameters where it
    lies are told the CPU, from where runners take their inputs.
    """

    def __init__(self, runner: Runner, network: Network) -> None:
        super().__init__()
        self.runner, self._in_form = runner, network.in_form
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs for these inputs."""
        return self._in_form(tensors_of(self.runner(*args, **kwargs)))


@dataclass(frozen=True)
class Runtime(ABC):
    """Makes networks run somewhere; one file per runtime, registered by `register_runtime`."""

    threads: int | None = None  # on the CPU; None takes as many as PyTorch uses here
    device: torch.device | str | None = None  # where to run; None leaves it to the runtime
    channels_last: bool = True  # run images in this memory format, where there is a choice

    name: ClassVar[str]  # under which it is asked for
    title: ClassVar[str] = ""  # as tables call it; empty for its name
    slow_start: ClassVar[bool] = False  # whether it takes long to make a network run
    int8: ClassVar[str] = ""  # what its files of int8 networks end in; empty if it cannot quantize

    def __post_init__(self) -> None:
        """Refuse a number of threads that makes no sense."""
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise OptionError("threads", self.threads, "at least 1")

    @property
    @abstractmethod
    def version(self) -> str:
        """The version of the library that runs the network."""

    def lacking(self) -> str | None:
        """Return one line on what to install before it can be used here; None for nothing."""
        return None

    def place(self, networks: Iterable[Any], inputs: Inputs) -> torch.device:
        """Return the device on which these run side by side; `ConfigError` if it is not here."""
        return resolve_device("cpu" if self.device is None else self.device)

    @staticmethod
    def home(networks: Iterable[Any], inputs: Inputs) -> torch.device:
        """Return the device of the first network with parameters, or else of the inputs."""
        modules = [network for network in networks if isinstance(network, nn.Module)]
        first = next((module for module in modules if any(True for _ in module.parameters())), None)
        return home_device(first, inputs)

    @abstractmethod
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> Runner:
        """Return a module made to run here, given one batch of any size.

        With `check`, what was made is compared with the network, where it is translated. Raises
        `ShoalError` if the runtime cannot take the network.
        """

    def quantize(self, network: nn.Module, samples: Sequence[Inputs], path: Path) -> Runner:
        """Write a network in int8 to `path`, which ends in `int8`, and return what runs the file.

        This is static quantization after training, by the library of the runtime. The samples are
        inputs of the network, in batches, to find the ranges of activations with: there are some.
        Whatever else is to lie beside the file has its name but for the ending. Raises `ShoalError`
        where this cannot be done.
        """
        raise ShoalError(
            f"{self.title or self.name} cannot quantize: choose a runtime that does, such as "
            "onnxruntime or openvino"
        )


RUNTIMES: Registry[type[Runtime]] = Registry("runtime", group="shoal.runtimes")


def register_runtime(name: str) -> Callable[[type[Runtime]], type[Runtime]]:
    """Return a decorator that makes a `Runtime` known under a name.

    Raises:
        ConfigError: the name is taken.

    Example:
        >>> import shoal
        >>> from shoal.runtimes.eager import Eager
        >>> @shoal.register_runtime("one_thread")
        ... class OneThread(Eager):
        ...     name, title = "one_thread", "PyTorch, one thread"
        ...
        ...     def make(self, network, inputs, *, check=False):
        ...         return Eager(threads=1, device=self.device).make(network, inputs)
    """
    return RUNTIMES.register(name)


def open_runtime(runtime: str | Runtime, **options: Any) -> Runtime:
    """Return the runtime of a name, which may lack packages; one that is given stays as it is.

    A name is "eager", "compile", "onnxruntime", "openvino", "tensorrt", a registered one, or
    `path/file.py:Name`; options are those of `Runtime`. Raises `NameNotFoundError` if there is no
    such runtime.
    """
    if isinstance(runtime, Runtime):
        for name, given in options.items():
            value = _plain(given)
            if value not in (getattr(Runtime, name), _plain(getattr(runtime, name))):
                raise ConfigError(
                    f"{name}= is for a runtime that is named: give it to the runtime itself, as "
                    f"{type(runtime).__name__}({name}={value!r})"
                )
        return runtime
    kind, written = RUNTIMES.find(runtime) if isinstance(runtime, str) else (None, {})
    if not (isinstance(kind, type) and issubclass(kind, Runtime)):
        raise ConfigError(
            f"'{runtime}' is not a runtime: give a name, or an instance of shoal.runtimes.Runtime"
        )
    known = [one.name for one in fields(kind)]
    for name in written:
        if name not in known:
            which = str(runtime).partition("?")[0]
            hint = nearest_names("option", name, known)
            raise ConfigError(f"the runtime '{which}' does not take '{name}': {hint}")
    return kind(**{**options, **written})


def _plain(value: Any) -> Any:
    """Return an option's value as it is written: `torch.device("cpu")` is "cpu"."""
    return str(value) if isinstance(value, torch.device) else value


def find_runtime(runtime: str | Runtime, **options: Any) -> Runtime:
    """Return what `open_runtime` returns; `ShoalError` if a package that it needs is missing."""
    runtime = open_runtime(runtime, **options)
    lacking = runtime.lacking()
    if lacking is not None:
        raise ShoalError(lacking)
    return runtime


def title_of(name: str) -> str:
    """Return what tables call the runtime of a name; the name where nobody knows it here."""
    return (RUNTIMES[name].title if name in RUNTIMES else "") or name


def installed() -> list[str]:
    """Return the names of the runtimes that can be used here, sorted."""
    return [name for name in RUNTIMES.names() if RUNTIMES[name]().lacking() is None]
