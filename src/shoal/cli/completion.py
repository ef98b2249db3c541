"""What a shell completes: names of methods, criteria, runtimes, tasks and recipes, and few choices.

A shell asks at each press of a key, so nothing here imports PyTorch: the names of those kinds that
need it are written down, and a test compares them with the registries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.options import Option

Completion = Callable[[str], list[str]]

RUNTIMES = ("compile", "eager", "onnxruntime", "openvino", "tensorrt")
CRITERIA = (
    "block_entropy",
    "block_influence",
    "bn_scale",
    "cka",
    "collapse_loss",
    "consensus",
    "entropy",
    "fit_residual",
    "grasp",
    "hrank",
    "kl",
    "l1",
    "l2",
    "last",
    "lesion",
    "line_loss",
    "norm_entropy",
    "random",
    "site_l1",
    "snip",
    "taylor",
    "transport",
)


def completing(kind: str) -> Completion:
    """Return what completes the name of a kind of thing, or the last of several with commas."""
    return _among(lambda: _names(kind))


def completion_of(option: Option) -> Completion | None:
    """Return what completes the values of an option, where they can be listed."""
    kind = {"criterion": "criterion", "runtime": "runtime"}
    kind |= {"dense_recipe": "recipe", "final_recipe": "recipe"}
    if option.name in kind:
        return completing(kind[option.name])
    choices = () if option.check is None else option.check.choices
    return _among(lambda: choices) if choices else None


def _among(names: Callable[[], Iterable[str]]) -> Completion:
    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last)]

    return complete


def _names(kind: str) -> list[str]:
    """Return all names of a kind, those of installed packages too."""
    import shoal.methods  # noqa: F401  registers them
    from shoal.options import published_recipes, recipes
    from shoal.options.task import BUILT_IN
    from shoal.registry import names_outside
    from shoal.search.method import methods

    if kind == "method":
        return methods.names()
    if kind == "recipe":
        return [*recipes.names(), *published_recipes()]
    groups = {"criterion": (CRITERIA, "shoal.criteria"), "runtime": (RUNTIMES, "shoal.runtimes"),
              "task": (BUILT_IN, "shoal.tasks")}  # fmt: skip
    own, group = groups[kind]
    return sorted({*own, *names_outside(group)})
