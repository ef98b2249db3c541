"""Compiled: PyTorch runs what `torch.compile` makes of a network; on a GPU as a CUDA graph."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import override

from shoal.errors import ShoalError
from shoal.network.inputs import Inputs, calling, first_line, map_tensors
from shoal.network.own_code import with_own_code
from shoal.quiet import quietly
from shoal.runtimes.eager import Eager, EagerRunner
from shoal.runtimes.proof import check_runner
from shoal.runtimes.runtime import Runner, register_runtime

# CUDA graphs are recorded in the second call of the same inputs, and replayed from the third on.
_CALLS = 3
# Networks have code of their own; modules that are compiled in parts share that of their parts.
_NO_LIMITS = {"recompile_limit": 1_000_000, "accumulated_recompile_limit": 1_000_000}


@register_runtime("compile")
class Compiled(Eager):
    """PyTorch with inductor: a network is compiled for each shape of its inputs that it is run on.

    That takes seconds to a minute on a CPU, and much less where PyTorch's caches on disk hold a
    network of the same layers and shapes, with whatever weights.
    """

    name = "compile"
    title = "PyTorch, compiled"
    slow_start = True

    @override
    def lacking(self) -> str | None:
        usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        compiler = os.environ.get("CXX", usual)
        if shutil.which(compiler) is None:
            return (
                f"torch.compile needs a C++ compiler and there is no '{compiler}' here: install "
                "one, or name it by the environment variable CXX"
            )
        headers = Path(sysconfig.get_path("include"))
        if not (headers / "Python.h").is_file():
            return (
                f"torch.compile needs Python's headers and there is no Python.h in '{headers}': "
                "install them (python3-dev)"
            )
        return None

    @override
    def make(self, network: Any, inputs: Inputs, *, check: bool = False) -> Runner:
        runner = _CompiledRunner(network, self.place([network], inputs), self)
        if check:
            check_runner(runner, network, inputs, self.title)
        return runner


class _CompiledRunner(EagerRunner):
    def __init__(self, network: Any, place: torch.device, asked: Compiled) -> None:
        super().__init__(network, place, asked)
        self.mode = "reduce-overhead" if place.type == "cuda" else None
        self.compiled: dict[str, Callable[..., Any]] = {}  # by the shapes of their inputs

    @override
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.lent_for(args, kwargs) as call:
            outputs = call()
        # The next call of a CUDA graph writes where this one did.
        return map_tensors(Tensor.clone, outputs)

    @override
    def prepared(
        self, lent: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Callable[..., Any]:
        key = repr(pytree.tree_map(_form, (args, kwargs)))
        if key not in self.compiled:
            with calling("the network"):
                lent(*args, **kwargs)
            with quietly():  # the first imports the compiler
                self.compiled[key] = self._compile()
        run = self.compiled[key]
        try:
            with quietly(), torch._dynamo.config.patch(_NO_LIMITS):
                for _ in range(_CALLS):
                    run(*args, **kwargs)
        except Exception as error:
            raise ShoalError(
                f"torch.compile cannot compile the network ({first_line(error)}): choose another "
                "runtime"
            ) from error
        return run

    def _compile(self) -> Callable[..., Any]:
        network = self.network

        def forward(*args: Any, **kwargs: Any) -> Any:
            return network(*args, **kwargs)

        return torch.compile(with_own_code(forward), dynamic=False, mode=self.mode)


def _form(leaf: Any) -> Any:
    return (leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
