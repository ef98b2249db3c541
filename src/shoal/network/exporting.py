"""Export a model as a graph of ATen calls, and say in one line why that failed."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
import torch.utils.checkpoint
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.export import Dim
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from shoal.errors import CaptureError
from shoal.modes import dtype_of
from shoal.network.as_it_was import as_it_was
from shoal.network.contexts import flatten_contexts
from shoal.network.input_sizes import is_condition
from shoal.network.inputs import Call, map_tensors, misfit, tensors_of
from shoal.network.shape_reads import Comparison, ShapeReads
from shoal.quiet import quietly


@dataclass(frozen=True)
class Exported:
    """A model as a graph of ATen calls."""

    graph: fx.Graph  # its `get_attr` nodes name tensors by their path in the model
    tensors: nn.Module  # holds these, and the constants that the forward pass made
    output_structure: pytree.TreeSpec
    comparisons: tuple[Comparison, ...] = ()  # of sizes other than the batch, by the model's code
    conditions: tuple[str, ...] = ()  # what was taken for given of the batch size


def export_model(model: nn.Module, call: Call, batch: int) -> Exported:
    """Export a model in the mode it is in, with a free batch size."""

    def dynamic(leaf: Any) -> Any:
        return {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.dim() > 0 else None

    shapes = pytree.tree_map(dynamic, call)
    target, named = model, _named_shapes(model, shapes)
    own_names = (*model._modules, *model._parameters, *model._buffers)
    if any(hasattr(fx.GraphModule, name) for name in own_names):
        target = _Around(model)
        named = {**({"args": shapes[0]} if call[0] else {}), **shapes[1]}
    _run_once(model, call)
    try:
        with as_it_was(model), as_layers(), quietly(), torch.enable_grad():
            with ShapeReads() as reads:
                program = torch.export.export(target, *call, dynamic_shapes=named, strict=False)
            module = program.module(check_guards=False)
            flatten_contexts(module)
    except Exception as error:
        raise CaptureError(_explain(model, error, batch)) from error
    structure: Any = module._out_spec
    tensors = module if target is model else _unwrapped(module)
    conditions = _batch_conditions(module.graph)
    return Exported(module.graph, tensors, structure, tuple(reads.comparisons), conditions)


def _batch_conditions(graph: fx.Graph) -> tuple[str, ...]:
    """Return what the export took for given of the batch size, as comparisons of `batch`."""
    values = [node.meta.get("val") for node in graph.nodes if node.op == "placeholder"]
    sizes: list[Any] = [v.shape[0] for v in values if isinstance(v, Tensor) and v.dim() > 0]
    nodes = [size.node for size in sizes if isinstance(size, torch.SymInt)]
    batch = sympy.Symbol("batch", integer=True, positive=True)
    found: dict[str, None] = {}
    for guard in nodes[0].shape_env.guards if nodes else ():
        expression = guard.expr.xreplace(dict.fromkeys((node.expr for node in nodes), batch))
        if expression.free_symbols == {batch}:
            found[PythonPrinter().doprint(expression)] = None
    return tuple(condition for condition in found if is_condition(condition))


@contextmanager
def as_layers() -> Iterator[None]:
    """Let attention and activation checkpoints compute as their layers do, in eval mode too."""
    with without_fast_path(), _without_checkpoints():
        yield


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Keep attention from kernels of its own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Call directly what reentrant activation checkpoints run without gradients at first.

    An export would see that first run alone. (The other kind of checkpoint leaves no trace.)
    """

    class Direct:
        @staticmethod
        def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
            return function(*args)

    before = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = Direct  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = before  # type: ignore[misc]


def _run_once(model: nn.Module, call: Call) -> None:
    """Run a model on real tensors, so that its caches hold such; keep the buffers that this makes.

    Raises `CaptureError` if the model itself fails. In training mode it would draw random numbers,
    and it ran in eval mode before.
    """
    if model.training:
        return
    try:
        with as_it_was(model, but_new_buffers=True), _without_checkpoints(), torch.no_grad():
            args, kwargs = map_tensors(Tensor.clone, call)  # it may overwrite them
            model(*args, **kwargs)
    except Exception as error:
        raise CaptureError(_failure(model, call, error)) from error


def own_gradients(model: nn.Module, call: Call) -> tuple[str, ...]:
    """Return the `torch.autograd.Function`s of a model, whose gradients an export does not see."""
    # Nothing is kept for a backward pass: this takes no more memory than a pass without gradients.
    hooks = saved_tensors_hooks(lambda _: None, lambda _: torch.empty(0))
    try:
        with as_it_was(model), _without_checkpoints(), hooks, torch.enable_grad():
            args, kwargs = map_tensors(Tensor.clone, call)
            outputs = model(*args, **kwargs)
    except Exception:  # it does not train, such as one that writes to its weights
        return ()
    found: dict[str, None] = {}
    waiting: list[Any] = [tensor.grad_fn for tensor in tensors_of(outputs)]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        waiting += (source for source, _ in node.next_functions)
        function = getattr(node, "_forward_cls", None)
        if function is not None and not function.__module__.startswith("torch."):
            found[function.__name__] = None
    return tuple(reversed(found))


def _failure(model: nn.Module, call: Call, error: Exception) -> str:
    """Return one line on why the model fails on the example inputs."""
    weights = dtype_of(model)
    types = {x.dtype for x in tensors_of(call)} - {weights, torch.bool}
    for wrong in ({kind for kind in types if kind.is_floating_point}, types):
        if weights is not None and wrong and _runs_as(model, call, wrong, weights):
            return misfit(wrong, weights, type(model).__name__)
    return (
        f"{type(model).__name__} itself fails on the example inputs{_source_line(error)}: "
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    )


def _runs_as(model: nn.Module, call: Call, wrong: set[torch.dtype], weights: torch.dtype) -> bool:
    """Whether the model runs on inputs of the `wrong` types converted to that of its weights."""
    args, kwargs = map_tensors(lambda x: x.to(weights) if x.dtype in wrong else x.clone(), call)
    try:
        with as_it_was(model), torch.no_grad():
            model(*args, **kwargs)
    except Exception:
        return False
    return True


class _Around(nn.Module):
    """Holds a model one level down: `fx.GraphModule` refuses children called `graph` or `code`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def _unwrapped(module: fx.GraphModule) -> nn.Module:
    """Rename what the graph calls by paths in `_Around` to the model's own; return the tensors."""
    prefix = "model."
    tensors = module._modules.get("model") or nn.Module()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            target = str(node.target)
            if not target.startswith(prefix):
                tensors.register_buffer(target, getattr(module, target), persistent=False)
            node.target = target.removeprefix(prefix)
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["nn_module_stack"] = {
            key: (f"{path}.".removeprefix(prefix).rstrip("."), kind)
            for key, (path, kind) in stack.items()
        }
    return tensors


def _named_shapes(model: nn.Module, shapes: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Return dynamic shapes in the form torch.export wants: by parameter name."""
    args, kwargs = shapes
    signature = inspect.signature(model.forward)
    try:
        named = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}"
        ) from error
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named.update(named.pop(name, {}))
    return named


def _explain(model: nn.Module, error: Exception, batch: int) -> str:
    """Return one line: what went wrong, and where in the user's own code."""
    text = " ".join(str(error).split())
    fixed = "constraint" in text.lower() and "specialized" in text.lower()
    if fixed or "marked as dynamic" in text.lower() or "ConstraintViolation" in str(type(error)):
        return (
            f"the model fixes its batch size to {batch} somewhere in its forward pass"
            f"{_source_line(error)}: use x.shape[0] (or -1 in view) in place of a number"
        )
    if _packed(error):
        return (
            f"packed sequences cannot be captured{_source_line(error)}: give the recurrent layer "
            "the padded batch, and take each sample's last real step from its outputs"
        )
    for end in (" The following call raised", "(Size-like symbols", " For more information about"):
        text = text.split(end)[0]
    return (
        f"torch.export cannot capture {type(model).__name__}{_source_line(error)}: "
        f"{type(error).__name__}: {text[:300]}"
    )


def _packed(error: BaseException) -> bool:
    """Whether a call on the way to the error held a packed sequence."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(isinstance(v, PackedSequence) for frame in frames for v in frame.f_locals.values())


def _source_line(error: BaseException) -> str:
    """Return " at file:line `code`" for the model's own last line of code, or nothing.

    A line of the user's, be it in a notebook's cell, goes before one of an installed library.
    """
    hidden = (Path(__file__).parents[1], Path(torch.__file__).parent)
    library = ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        generated = path.name.startswith(("<eval_with_key", "<shoal", "<frozen", "<string"))
        if generated or not frame.line or any(path.is_relative_to(home) for home in hidden):
            continue
        found = f" at {path.name}:{frame.lineno} `{frame.line}`"
        if "site-packages" not in path.parts:
            return found
        library = library or found
    return library
