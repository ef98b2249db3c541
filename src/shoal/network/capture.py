"""Capture a trained model as a `Network`, and check that nothing changed."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from shoal.errors import CaptureError
from shoal.network.check import check_capture
from shoal.network.inplace import make_out_of_place
from shoal.network.network import InputSpec, Network, TensorSpec
from shoal.network.plan import Plan
from shoal.network.raising import raise_graph
from shoal.network.skeleton import Skeleton
from shoal.network.training_only import restore_training_only

__all__ = ["capture"]


def capture(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    check: bool = True,
) -> Network:
    """Capture `model` as a graph of ordinary modules that hold its own parameters.

    The network computes what the model computes, in eval and in training mode, for any batch size;
    `state_dict` keys are the model's. Both share parameters: train one and the other follows
    (`Network.copy` parts them). The model itself is left as it was.

    Args:
        model: a trained model that `torch.export` takes. A `Network` is returned as it is.
        example_inputs: what the model is called with: a tensor, a tuple of positional inputs, or a
            mapping of keyword inputs. Dimension 0 of each tensor is the batch, at least 2 samples.
        example_kwargs: keyword inputs that go with positional ones.
        check: compare outputs with the model's on these inputs, as given and for a single sample.

    Raises:
        CaptureError: the model cannot be exported (with its own source line where there is one),
            the batch is too small, or the captured network differs (with the first layer that
            does).
    """
    if isinstance(model, Network):
        return model
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture takes a torch.nn.Module, not {type(model).__name__}")
    args, kwargs = _as_call(example_inputs)
    kwargs.update(example_kwargs or {})
    leaves, structure = pytree.tree_flatten((args, kwargs))
    batch = _batch_size(leaves)
    with _modes_restored(model):
        model.eval()
        evaluated = _export(model, args, kwargs, batch)
        kept = make_out_of_place(evaluated.graph)
        notes = _restore_training(model, args, kwargs, batch, evaluated)
    network = _assemble(model, evaluated, kept, _input_spec(model, structure, kwargs, leaves))
    network._keep(notes=tuple(notes))
    network.train(model.training)
    _copy_modes(model, network)
    if check:
        with _modes_restored(model):
            check_capture(model.eval(), network, args, kwargs)
    return network


def _assemble(
    model: nn.Module,
    exported: fx.GraphModule,
    kept: Mapping[fx.Node, fx.Node],
    inputs: InputSpec,
) -> Network:
    network = Network()
    raised = raise_graph(exported, Skeleton(model, network), kept)
    network._keep(
        graph=raised.graph,
        plan=Plan(fingerprint=_fingerprint(network, raised.sites)),
        opaque=raised.opaque,
        notes=(),
        _inputs=inputs,
        _output_structure=exported._out_spec,
        _site_records={name: (kind, path) for name, kind, path in raised.sites},
    )
    network.recompile()
    return network


def _fingerprint(network: nn.Module, sites: Sequence[tuple[str, str, str]]) -> str:
    """Return a hash of the architecture: its sites, and the names and shapes of its tensors."""
    tensors = {name: list(value.shape) for name, value in network.state_dict().items()}
    text = json.dumps([[name, kind] for name, kind, _ in sites] + [tensors], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------------- the inputs


def _as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise CaptureError(
        "example_inputs must be a tensor, a tuple of positional inputs or a mapping of keyword "
        f"inputs, not {type(example_inputs).__name__}"
    )


def _batch_size(leaves: list[Any]) -> int:
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if not sizes:
        raise CaptureError("example_inputs hold no tensor with a batch dimension")
    if len(sizes) > 1:
        raise CaptureError(
            "dimension 0 of every input must be the batch, but the example's inputs have "
            f"{sorted(sizes)} samples"
        )
    batch = int(sizes.pop())
    if batch < 2:
        raise CaptureError(
            f"the example batch has {batch} sample{'s' * (batch != 1)}: give at least 2, so that "
            "the batch size can stay free"
        )
    return batch


def _input_spec(
    model: nn.Module, structure: pytree.TreeSpec, kwargs: Mapping[str, Any], leaves: list[Any]
) -> InputSpec:
    try:
        parameters = tuple(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):
        parameters = ()
    specs = tuple(
        TensorSpec(tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    )
    return InputSpec(structure, tuple(kwargs), parameters, specs)


# ---------------------------------------------------------------------- exporting


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int
) -> fx.GraphModule:
    def dynamic(leaf: Any) -> Any:
        return {0: Dim.DYNAMIC} if isinstance(leaf, Tensor) and leaf.dim() > 0 else None

    shapes = pytree.tree_map(dynamic, (args, kwargs))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        named = _named_shapes(model, shapes)
        with torch.enable_grad():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=named, strict=False)
        return program.module(check_guards=False)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(_explain(model, error, batch)) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


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
    out: dict[str, Any] = {}
    for name, value in named.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            out.update(value)
        else:
            out[name] = value
    return out


def _explain(model: nn.Module, error: Exception, batch: int) -> str:
    """Return one line: what went wrong, and where in the user's own code."""
    text = " ".join(str(error).split())
    fixed = "constraint" in text.lower() and "specialized" in text.lower()
    if fixed or "marked as dynamic" in text.lower() or "ConstraintViolation" in str(type(error)):
        return (
            f"the model fixes its batch size to {batch} somewhere in its forward pass"
            f"{_source_line(error)}: use x.shape[0] (or -1 in view) in place of a number"
        )
    reason = text.split(" The following call raised")[0].split("(Size-like symbols")[0]
    return (
        f"torch.export cannot capture {type(model).__name__}{_source_line(error)}: "
        f"{type(error).__name__}: {reason[:300]}"
    )


def _source_line(error: BaseException) -> str:
    """Return " at file:line `code`" for the last frame outside PyTorch and shoal, or nothing."""
    own = Path(__file__).parents[1]
    torch_home = Path(torch.__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        foreign = path.is_relative_to(torch_home) or path.is_relative_to(own)
        if path.is_file() and not foreign and "site-packages" not in path.parts[-4:-1]:
            return f" at {path.name}:{frame.lineno} `{frame.line}`"
    return ""


def _restore_training(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: int,
    evaluated: fx.GraphModule,
) -> list[str]:
    """Put what only training does into the graph; return notes on what could not be put back."""
    if all(_same_in_both_modes(module) for module in model.modules()):
        return []
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    try:
        trained = _export(model, args, kwargs, batch)
    except CaptureError:
        return ["training mode could not be captured: the network trains as its eval-mode graph"]
    finally:
        model.eval()
        with torch.no_grad():
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
    make_out_of_place(trained.graph)
    lost = restore_training_only(evaluated.graph, trained.graph)
    if not lost:
        return []
    shown = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
    return [f"only in training mode the model also computes {shown}: the network leaves that out"]


def _same_in_both_modes(module: nn.Module) -> bool:
    """Whether a module is known not to look at its training flag beyond what is raised."""
    return type(module).__module__.startswith("torch.nn.modules") and not isinstance(
        module, nn.MultiheadAttention
    )


# ---------------------------------------------------------------------- training flags


@contextlib.contextmanager
def _modes_restored(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _copy_modes(model: nn.Module, network: Network) -> None:
    """Give each layer the training flag of the original at its path (frozen norms stay frozen)."""
    originals = dict(model.named_modules(remove_duplicate=False))
    for path, module in network.named_modules(remove_duplicate=False):
        if path in originals:
            module.training = originals[path].training
