"""A shell completes the names of all that is registered, and does not wait for PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import shoal.methods  # noqa: F401  registers them
from shoal.cli import completion
from shoal.importance import criteria
from shoal.options import Recipe, options_of, published_recipes, recipes
from shoal.runtimes import RUNTIMES
from shoal.search.method import methods
from shoal.search.options import MachineOptions
from shoal.tasks import tasks

REGISTRIES = {
    "criterion": criteria, "method": methods, "recipe": recipes, "runtime": RUNTIMES, "task": tasks,
}  # fmt: skip


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_names_are_those_of_the_registry(kind: str) -> None:
    own = [n for n in REGISTRIES[kind].names() if _is_shoals(REGISTRIES[kind][n])]
    assert set(own) <= set(completion.completing(kind)(""))
    more = published_recipes() if kind == "recipe" else ()
    assert set(completion.completing(kind)("")) <= {*REGISTRIES[kind].names(), *more}


def _is_shoals(entry: object) -> bool:
    return (getattr(entry, "__module__", None) or type(entry).__module__).startswith("shoal.")


def test_the_last_of_several_names_is_completed() -> None:
    complete = completion.completing("runtime")
    assert complete("onn") == ["onnxruntime"]
    assert complete("eager,o") == ["eager,onnxruntime", "eager,openvino"]
    assert complete("nothing") == []


def test_few_choices_are_completed_and_numbers_are_not() -> None:
    known = {option.name: option for cls in (Recipe, MachineOptions) for option in options_of(cls)}
    schedule = completion.completion_of(known["schedule"])
    assert schedule is not None
    assert schedule("co") == ["cosine", "constant"]
    assert completion.completion_of(known["lr"]) is None
    runtime = completion.completion_of(known["runtime"])
    assert runtime is not None
    assert "eager" in runtime("")


def test_a_shell_gets_names_without_waiting_for_pytorch() -> None:
    words = "shoal compress resnet18 --method la"
    done = subprocess.run(
        [sys.executable, "-c",
         "import sys\nfrom shoal.cli import main\ncode = main([])\n"
         "assert 'torch' not in sys.modules\nraise SystemExit(code)"],
        env={**os.environ, "_SHOAL_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": "4"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["lacoot", "layer_folding", "layer_pruning"], done.stderr
