"""The captured network: an ordinary module with a graph, sites and a plan."""

from __future__ import annotations

import copy
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shoal.errors import CaptureError, ShoalError, unknown_name
from shoal.network.blocks import Block, find_blocks
from shoal.network.channels import channel_dim
from shoal.network.contexts import context_device, restored_on_error
from shoal.network.modules import Line
from shoal.network.plan import Plan
from shoal.network.raising import Opaque

__all__ = ["InputSpec", "Network", "Site", "TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of an example tensor; dimension 0 is the batch."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Site:
    """One call of a rectifier in the forward graph.

    Attributes:
        name: the path of its module in the network; unique and stable.
        kind: the rectifier ("relu", "gelu", …), also after it was linearized.
        path: the path of the original module that calls it.
        channel_dim: the dimension of its input that holds the neurons.
        channels: the number of neurons, None where the shape does not fix it.
        linearized: "line" or "identity" once it was linearized, else None.
    """

    name: str
    kind: str
    path: str
    channel_dim: int
    channels: int | None
    linearized: str | None


@dataclass(frozen=True)
class InputSpec:
    """What the network is called with.

    Attributes:
        structure: the tree of positional and keyword inputs, as PyTorch's pytree spells it.
        keywords: the names of the keyword inputs in the order of the tree.
        parameters: the parameter names of the original's `forward`.
        leaves: the example's leaves, tensors by their `TensorSpec`, others as they are.
        weights: the parameters' floating-point type at capture; None without parameters.
    """

    structure: pytree.TreeSpec
    keywords: tuple[str, ...]
    parameters: tuple[str, ...]
    leaves: tuple[Any, ...]
    weights: torch.dtype | None = None

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return the leaves of a call, in the graph's order; raises `CaptureError` on a misfit."""
        positional = self.structure.child(0).num_children
        rest = dict(kwargs)
        given = list(args)
        for name in self.parameters[len(given) : positional]:
            if name in rest:
                given.append(rest.pop(name))
        for name, value in zip(self.parameters[positional:], given[positional:], strict=False):
            rest[name] = value
        del given[positional:]
        ordered = {name: rest.pop(name) for name in self.keywords if name in rest}
        leaves, structure = pytree.tree_flatten((tuple(given), {**ordered, **rest}))
        if structure != self.structure:
            wanted = [*self.parameters[:positional], *self.keywords]
            raise CaptureError(
                f"the network was captured with the inputs ({', '.join(wanted)}) and was called "
                f"with {len(args)} positional and {sorted(kwargs)} keyword inputs: call it alike"
            )
        return leaves


class Network(nn.Module):
    """A trained model as a graph of ordinary modules.

    Call it, train it, move it like any module. `shoal.capture` makes one; operations whose names
    end in `_` change it in place and record themselves in `plan`. Parameters, buffers and
    `state_dict` keys are the original model's, which it shares until `copy` is called.

    Attributes:
        graph: the forward pass; nodes call modules of this network or ATen operations.
        plan: what was done to the network since capture.
        opaque: operations that could not be raised to modules, with reasons.
        notes: what else the user should know about the capture.
    """

    graph: fx.Graph
    plan: Plan
    opaque: tuple[Opaque, ...]
    notes: tuple[str, ...]
    _inputs: InputSpec
    _output_structure: pytree.TreeSpec
    _site_records: dict[str, tuple[str, str]]
    _root: nn.Module
    _run: Callable[..., Any]
    _context: str | None

    def __init__(self, **state: Any) -> None:
        super().__init__()
        self._keep(**state)

    def _keep(self, **state: Any) -> None:
        """Set attributes past `nn.Module`, which refuses those named like one of its children.

        A model may call its own children `blocks` or `graph`. They keep these names in
        `state_dict` and are reached by `get_submodule`; as attributes, the network's own win.
        """
        self.__dict__.update(state)

    # ------------------------------------------------------------------ running

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the original computes; inputs and outputs are shaped as the original's."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and self._one_tensor:
            leaves = list(args)
        else:
            leaves = self._inputs.flatten(args, kwargs)
        if self._context is None:
            outputs = self._run(self._root, *leaves)
        else:
            with restored_on_error(self._context):
                outputs = self._run(self._root, *leaves)
        if self._one_output:
            return outputs[0]
        return pytree.tree_unflatten(list(outputs), self._output_structure)

    def recompile(self) -> None:
        """Compile the forward pass again; needed after `graph` was changed."""
        self.graph.lint()
        code = self.graph.python_code("self")
        name = f"<shoal network {id(self):x}>"
        scope: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, name, "exec"), scope)
        linecache.cache[name] = (len(code.src), None, code.src.splitlines(True), name)
        positional = self._inputs.structure.child(0)
        self._keep(
            _run=scope["forward"],
            _root=self._plain_root(),
            _context=context_device(self.graph),
            _one_tensor=self._inputs.structure.num_leaves == 1
            and positional.num_children == 1
            and positional.child(0).is_leaf(),
            _one_output=self._output_structure.is_leaf(),
        )

    def _plain_root(self) -> nn.Module:
        """Return a bare module with this one's very children and tensors, free of name clashes."""
        root = nn.Module()
        root._modules = self._modules
        root._parameters = self._parameters
        root._buffers = self._buffers
        return root

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module at a path, as `nn.Module.get_submodule` does."""
        return self._root.get_submodule(target) if target else self

    def get_parameter(self, target: str) -> nn.Parameter:
        """Return the parameter at a path, as `nn.Module.get_parameter` does."""
        return self._root.get_parameter(target)

    def get_buffer(self, target: str) -> Tensor:
        """Return the buffer at a path, as `nn.Module.get_buffer` does."""
        return self._root.get_buffer(target)

    def replace_module(self, path: str, module: nn.Module) -> None:
        """Put `module` at an existing path in the place of what is there."""
        parent, _, name = path.rpartition(".")
        (self.get_submodule(parent) if parent else self._root)._modules[name] = module

    @property
    def code(self) -> str:
        """The forward pass as Python source, for reading."""
        return str(self.graph.python_code("self").src)

    # ------------------------------------------------------------------ what it is made of

    @property
    def sites(self) -> list[Site]:
        """All rectifier sites in the order of the forward pass, linearized ones included."""
        found = []
        for node in self.graph.nodes:
            if node.op == "call_module" and node.target in self._site_records:
                kind, path = self._site_records[node.target]
                dim = channel_dim(node.all_input_nodes[0], self)
                shape = node.meta.get("shape")
                channels = shape[dim] if shape is not None else None
                module = self.get_submodule(node.target)
                found.append(Site(node.target, kind, path, dim, channels, _state_of(module)))
        return found

    @property
    def sites_left(self) -> int:
        """How many sites still have their rectifier."""
        return sum(site.linearized is None for site in self.sites)

    @property
    def blocks(self) -> list[Block]:
        """All residual blocks in the order of the forward pass, removable or not."""
        return [found.block for found in find_blocks(self)]

    def site(self, name: str) -> Site:
        """Return the site of that name; raises `NameNotFoundError` with the nearest names."""
        sites = {site.name: site for site in self.sites}
        if name not in sites:
            raise unknown_name("site", name, sites)
        return sites[name]

    def node_of(self, name: str) -> fx.Node:
        """Return the graph node that calls the module at `name` (its first call)."""
        for node in self.graph.nodes:
            if node.op == "call_module" and node.target == name:
                return node
        raise unknown_name("module", name, [str(n.target) for n in self.graph.nodes])

    def example_inputs(self, batch: int | None = None, seed: int = 0) -> tuple[tuple, dict]:
        """Return random inputs of the captured shapes on the network's device, in its type.

        Args:
            batch: the number of samples; None keeps the captured one.
            seed: of the normal distribution that floating-point inputs are drawn from. Integer
                inputs are zeros.
        """
        generator = torch.Generator().manual_seed(seed)
        weight = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        moved = self._inputs.weights not in (None, weight.dtype)
        leaves: list[Any] = []
        for spec in self._inputs.leaves:
            if not isinstance(spec, TensorSpec):
                leaves.append(spec)
                continue
            shape = spec.shape
            if batch is not None and shape:
                shape = (batch, *shape[1:])
            if spec.dtype.is_floating_point:
                value = torch.randn(shape, generator=generator)
                value = value.to(weight.dtype if moved else spec.dtype)
            else:
                value = torch.zeros(shape, dtype=spec.dtype)
            leaves.append(value.to(weight.device))
        args, kwargs = pytree.tree_unflatten(leaves, self._inputs.structure)
        return tuple(args), dict(kwargs)

    # ------------------------------------------------------------------ copying

    def copy(self) -> Network:
        """Return an independent copy: own parameters, own graph, own plan."""
        return copy.deepcopy(self)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_run", "_root")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.recompile()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse pickling, which would tie a file to versions of shoal and PyTorch."""
        raise ShoalError("a Network cannot be pickled: save it with shoal.save(network, folder)")

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        shared = {"opaque", "notes", "_inputs", "_output_structure"}
        state = {
            key: value if key in shared else copy.deepcopy(value, memo)
            for key, value in self.__getstate__().items()
        }
        twin.__setstate__(state)
        return twin


def _state_of(module: nn.Module) -> str | None:
    if isinstance(module, Line):
        return "line"
    if isinstance(module, nn.Identity):
        return "identity"
    return None
