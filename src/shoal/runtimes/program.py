"""From a network to a program of `torch.export`, in the form that files are written from.

The program is made from a copy of the network in eval mode on the CPU, without the modules that
act only in training, and with one free dimension: the batch.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional
from torch.utils import _pytree as pytree

from shoal.errors import ConfigError, ShoalError
from shoal.network import Network, capture
from shoal.network.call_form import InputSpec
from shoal.network.inputs import (
    Call,
    Inputs,
    as_call,
    batch_size,
    borrowed,
    calling,
    home_device,
    map_tensors,
    repeat_rows,
)
from shoal.network.modules import Line
from shoal.network.ops import op_of
from shoal.quiet import quietly
from shoal.runtimes.onnx_file import BATCH, root_cause
from shoal.runtimes.proof import float_type


@dataclass(frozen=True)
class Example:
    """The inputs of one call, as the leaves of their tree; tensors are batch first."""

    spec: InputSpec  # how the network is called
    leaves: tuple[Any, ...]  # tensors on the CPU, and other values as they are

    @classmethod
    def of(cls, network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Example:
        """Return the example of `network(*args, **kwargs)`."""
        leaves = network.inputs.flatten(args, kwargs)
        return cls(network.inputs, tuple(map_tensors(lambda t: t.detach().cpu().clone(), leaves)))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The leaves that are tensors."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Tensor))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each tensor: the parameter of the original's `forward` that takes it."""
        args, kwargs = pytree.tree_unflatten(range(len(self.leaves)), self.spec.structure)
        named = [*zip(self.parameters(len(args)), args, strict=True), *kwargs.items()]
        by_leaf = {leaf: name for top, tree in named for name, leaf in named_leaves(tree, top)}
        return tuple(by_leaf[i] for i, v in enumerate(self.leaves) if isinstance(v, Tensor))

    def parameters(self, count: int) -> list[str]:
        """Return a name for each of the first `count` positional arguments."""
        own = self.spec.parameters[:count]
        return [*own, *(f"input_{i}" for i in range(len(own), count))]

    def with_batch(self, size: int) -> Example:
        """Return an example of `size` samples: the first ones, repeated if there are fewer."""
        return Example(self.spec, tuple(map_tensors(lambda t: repeat_rows(t, size), self.leaves)))

    def call(self, tensors: Sequence[Tensor]) -> Call:
        """Return the arguments of a call with these tensors in the place of the example's."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec.structure)
        return tuple(args), dict(kwargs)

    def flat(self, model: Callable[..., Any]) -> Callable[..., list[Tensor]]:
        """Return `model` as a function from the example's tensors to all tensors it gives out."""

        def run(*tensors: Tensor) -> list[Tensor]:
            args, kwargs = self.call(tensors)
            leaves = pytree.tree_leaves(model(*args, **kwargs))
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        return run


def outputs_of(network: Network, example: Example) -> tuple[str, ...]:
    """Return a name for each tensor given out: the key in a dict, or "output", "output_0"…."""
    args, kwargs = example.call(example.tensors)
    there = torch.device("cpu")
    with borrowed(network, device=there) as lent, torch.inference_mode(), calling("the network"):
        outputs = lent(*args, **kwargs)
    top = "" if isinstance(outputs, dict) else "output"
    return tuple(name for name, leaf in named_leaves(outputs, top) if isinstance(leaf, Tensor))


def named_leaves(tree: Any, top: str) -> list[tuple[str, Any]]:
    """Return the leaves of a tree, each named by its path below the name `top`."""
    by_path: Any
    try:
        by_path = pytree.tree_flatten_with_path(tree)[0]
    except ValueError:  # a registered class that does not name its parts
        by_path = [((i,), leaf) for i, leaf in enumerate(pytree.tree_leaves(tree))]
    found = []
    for path, leaf in by_path:
        parts = list(map(_key_name, path))
        found.append(("_".join([top, *parts] if top else parts), leaf))
    return found


def _key_name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))


def plain_tree(tree: Any) -> Any:
    """Return a tree with dicts in the place of what a file cannot name: named tuples, dataclasses.

    Example:
        >>> from collections import namedtuple
        >>> plain_tree([namedtuple("Out", "logits aux")(1, 2)])
        [{'logits': 1, 'aux': 2}]
    """
    if type(tree) in (tuple, list):
        return type(tree)(map(plain_tree, tree))
    if type(tree) in (dict, OrderedDict):
        return {key: plain_tree(value) for key, value in tree.items()}
    if pytree.tree_is_leaf(tree):
        return tree
    parts = pytree.tree_flatten_with_path(tree, is_leaf=lambda part: part is not tree)[0]
    return {_key_name(path[0]): plain_tree(part) for path, part in parts}


def prepare(network: nn.Module, given: Inputs | None) -> tuple[Network, Example]:
    """Return the network, captured, and an example of at least two samples for it.

    Without inputs, those are random ones of the captured shapes. Raises `ConfigError` for what is
    no module, or was not captured and has no inputs.
    """
    if not isinstance(network, nn.Module):
        raise ConfigError(f"export takes a torch.nn.Module, not {type(network).__name__}")
    if given is not None:
        size, place = max(2, batch_size(given)), home_device(network, given)  # capture needs two
        args, kwargs = as_call(map_tensors(lambda t: repeat_rows(t, size).to(place), given))
    elif isinstance(network, Network):
        kind = float_type(network)  # the network may have been converted since its capture
        args, kwargs = map_tensors(
            lambda t: t.to(kind) if t.is_floating_point() else t, network.example_inputs(batch=2)
        )
    else:
        raise ConfigError(
            f"{type(network).__name__} was not captured: give example_inputs= to export it"
        )
    net = network if isinstance(network, Network) else capture(network, args or kwargs)
    return net, Example.of(net, args, kwargs)


# ---------------------------------------------------------------------- programs


def flat_program(network: Network, example: Example) -> ExportedProgram:
    """Return a program from the example's tensors to a list of all tensors given out."""
    twin = _evaluation_twin(network, norms=True)
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.data = tensor.data.contiguous()  # a file knows no memory formats
    tensors = example.tensors
    signature = inspect.Signature([inspect.Parameter("tensors", inspect.Parameter.VAR_POSITIONAL)])
    module = _Exportable(twin, example.flat(twin), signature)
    return _export(module, tensors, {}, {"tensors": tuple(_free_batch(t) for t in tensors)})


def called_program(network: Network, example: Example) -> ExportedProgram:
    """Return a program that is called as the network is; outputs with named parts are dicts."""
    args, kwargs = example.call(example.tensors)
    names = example.parameters(len(args))
    signature = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        + [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs]
    )
    twin = _evaluation_twin(network)
    shapes = pytree.tree_map(_free_batch, {**dict(zip(names, args, strict=True)), **kwargs})

    def run(*args: Any, **kwargs: Any) -> Any:
        return plain_tree(twin(*args, **kwargs))

    return _export(_Exportable(twin, run, signature), args, kwargs, shapes)


class _Exportable(nn.Module):
    """A network's own children and tensors under their names, behind any forward function."""

    def __init__(self, network: Network, run: Callable[..., Any], signature: Any) -> None:
        super().__init__()
        self._modules = network._modules
        self._parameters = network._parameters
        self._buffers = network._buffers

        def forward(*args: Any, **kwargs: Any) -> Any:
            return run(*args, **kwargs)

        forward.__signature__ = signature  # type: ignore[attr-defined]
        # Past nn.Module, which refuses a function where a child has that name.
        self.__dict__.update(forward=forward, training=False)


def _evaluation_twin(network: Network, *, norms: bool = False) -> Network:
    """Return a copy in eval mode on the CPU, without what acts in training; lines as `norms`."""
    twin = network.copy().eval().cpu()
    for node in list(twin.graph.nodes):
        if node.op != "call_module":
            continue
        layer, shape = twin.get_submodule(str(node.target)), node.meta.get("shape") or ()
        if op_of(layer).linear == "nothing":
            node.replace_all_uses_with(node.all_input_nodes[0])
            twin.graph.erase_node(node)
        elif norms and isinstance(layer, Line) and _is_by_channel(layer, shape):
            twin.replace_module(str(node.target), _LineAsNorm(layer))
    twin.recompile()
    return twin


def _is_by_channel(line: Line, shape: Sequence[int | None]) -> bool:
    """Whether a line has a slope for each entry of the second dimension: it may have but one."""
    second = len(shape) > 1 and line.channel_dim % len(shape) == 1
    return second and line.slope.numel() == shape[1]


class _LineAsNorm(nn.Module):
    """A line along the second dimension as the batch norm that computes it.

    ONNX Runtime can fuse it, keeps its own layout around it, and passes over the data once.
    """

    # Exporters refuse 0, so the variance is 1 - EPS: with a power of two their sum is 1 to the bit.
    EPS = 2.0**-8

    mean: Tensor
    variance: Tensor

    def __init__(self, line: Line) -> None:
        super().__init__()
        slope, intercept = line.slope.detach().flatten(), line.intercept.detach().flatten()
        self.weight, self.bias = nn.Parameter(slope), nn.Parameter(intercept)
        self.register_buffer("mean", torch.zeros_like(slope))
        self.register_buffer("variance", torch.full_like(slope, 1.0 - self.EPS))

    def forward(self, z: Tensor) -> Tensor:
        norm = functional.batch_norm
        return norm(z, self.mean, self.variance, self.weight, self.bias, eps=self.EPS)


def _free_batch(leaf: Any) -> Any:
    return {0: Dim(BATCH)} if isinstance(leaf, Tensor) and leaf.dim() > 0 else None


def _export(module: nn.Module, args: Any, kwargs: Any, shapes: Any) -> ExportedProgram:
    try:
        with quietly():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ShoalError(
            f"torch.export cannot write the network with a free batch size ({root_cause(error)}): "
            "replace the layer that it names"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program
