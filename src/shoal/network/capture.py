"""Capture a trained model as a `Network`, and check that nothing changed."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shoal.errors import CaptureError
from shoal.modes import kept_flags
from shoal.network.blocks import fix_block_names
from shoal.network.check import check_capture
from shoal.network.exporting import Exported, export_model
from shoal.network.inplace import make_out_of_place
from shoal.network.inputs import as_call
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

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
        >>> [site.name for site in net.sites][:3]
        ['relu', 'layer1.0.relu', 'layer1.0.relu_1']
        >>> [block.name for block in net.blocks if block.removable][:2]
        ['layer1.0', 'layer1.1']
    """
    if isinstance(model, Network):
        return model
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture takes a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(example_inputs, Tensor | Mapping | tuple | list):
        raise CaptureError(
            "example_inputs must be a tensor, a tuple of positional inputs or a mapping of keyword "
            f"inputs, not {type(example_inputs).__name__}"
        )
    args, kwargs = as_call(example_inputs)
    kwargs.update(example_kwargs or {})
    leaves, structure = pytree.tree_flatten((args, kwargs))
    batch = _batch_size(leaves)
    with kept_flags(model), _buffers_restored(model):
        model.eval()
        evaluated = export_model(model, args, kwargs, batch)
        _assert_tensor_output(model, evaluated)
        kept = make_out_of_place(evaluated.graph)
        notes = _restore_training(model, args, kwargs, batch, evaluated)
    network = _assemble(model, evaluated, kept, _input_spec(model, structure, kwargs, leaves))
    network._keep(notes=tuple(notes))
    network.train(model.training)
    _copy_modes(model, network)
    if check:
        with kept_flags(model), _buffers_restored(model):
            check_capture(model.eval(), network, args, kwargs)
    return network


def _assemble(
    model: nn.Module, exported: Exported, kept: Mapping[fx.Node, fx.Node], inputs: InputSpec
) -> Network:
    network = Network()
    graph, sites, opaque = raise_graph(exported, Skeleton(model, network), kept)
    network._keep(
        graph=graph,
        plan=Plan(fingerprint=_fingerprint(network, sites)),
        opaque=opaque,
        notes=(),
        meta={},
        inputs=inputs,
        _output_structure=exported.output_structure,
        _site_records=sites,
    )
    network.recompile()
    fix_block_names(network.graph, network)
    return network


def _fingerprint(network: nn.Module, sites: Mapping[str, tuple[str, str]]) -> str:
    """Return a hash of the architecture: its sites, and the names and shapes of its tensors."""
    tensors = {name: list(value.shape) for name, value in network.state_dict().items()}
    text = json.dumps(
        [[name, kind] for name, (kind, _) in sites.items()] + [tensors], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------------- the inputs


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
    weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return InputSpec(structure, tuple(kwargs), parameters, specs, weights)


# ---------------------------------------------------------------------- training


def _restore_training(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int, evaluated: Exported
) -> list[str]:
    """Put what only training does into the graph; return notes on what could not be put back."""
    if all(_same_in_both_modes(module) for module in model.modules()):
        return []
    try:
        with kept_flags(model):
            trained = export_model(model.train(), args, kwargs, batch)
    except CaptureError:
        return ["training mode could not be captured: the network trains as its eval-mode graph"]
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


def _assert_tensor_output(model: nn.Module, exported: Exported) -> None:
    output = next(node for node in exported.graph.nodes if node.op == "output")
    if not any(isinstance(n.meta.get("val"), Tensor) for n in output.all_input_nodes):
        raise CaptureError(
            f"{type(model).__name__} returns no tensor that depends on its inputs: a model must "
            "return a tensor, or a tuple, list or dictionary that holds one"
        )


# ---------------------------------------------------------------------- flags and buffers


@contextlib.contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undo what a forward pass does to buffers, be it in their memory or by replacing them."""
    owners = [(module, dict(module._buffers)) for module in model.modules()]
    values = {id(b): b.clone() for _, own in owners for b in own.values() if b is not None}
    try:
        yield
    finally:
        with torch.no_grad():
            for module, own in owners:
                module._buffers.update(own)
                for buffer in own.values():
                    if buffer is not None:
                        buffer.copy_(values[id(buffer)])


def _copy_modes(model: nn.Module, network: Network) -> None:
    """Give each layer the training flag of the original at its path (frozen norms stay frozen)."""
    originals = dict(model.named_modules(remove_duplicate=False))
    for path, module in network.named_modules(remove_duplicate=False):
        if path in originals:
            module.training = originals[path].training
