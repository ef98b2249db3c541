"""The captured network: an ordinary module with a graph, sites and a plan of what was done."""

from __future__ import annotations

import copy
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shoal.display import Shown
from shoal.errors import CaptureError, PlanError, ShoalError, unknown_name
from shoal.modes import dtype_of
from shoal.network.blocks import Block
from shoal.network.call_form import InputSpec, TensorSpec
from shoal.network.contexts import context_device, restored_on_error
from shoal.network.graph import Graph, Site
from shoal.network.input_sizes import Sizes
from shoal.network.inputs import Call, Inputs, as_inputs
from shoal.network.own_code import with_own_code
from shoal.network.paths import hand_on, read_of, tables_of
from shoal.network.raising import Opaque
from shoal.network.stretches import Stretch

_T = TypeVar("_T")

_REMADE = ("_compiled", "_run", "_root", "_view", "_compiled_call_impl")  # not copied


@dataclass(frozen=True)
class Operation:
    """One step of surgery."""

    kind: str  # "linearize", "drop", "collapse" or "merge"
    names: tuple[str, ...]  # the sites or blocks it was done to
    options: Mapping[str, Any] = field(default_factory=dict)  # JSON values only

    def to_dict(self) -> dict[str, Any]:
        """Return the operation as JSON values."""
        return {**vars(self), "names": list(self.names)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Operation:
        """Read what `to_dict` wrote; raises `PlanError` if it is something else."""
        try:
            return cls(str(data["kind"]), tuple(map(str, data["names"])), dict(data["options"]))
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan holds an operation that cannot be read: {data}") from error


@dataclass
class Plan:
    """The operations done to a network, in order."""

    # Where the original model comes from ("torchvision:resnet18"); None if the user holds it.
    base: str | None = None
    fingerprint: str = ""  # a hash of the base model's architecture
    operations: list[Operation] = field(default_factory=list)  # oldest first

    def record(self, kind: str, names: tuple[str, ...], **options: Any) -> Operation:
        """Add an operation at the end, and return it."""
        self.operations.append(Operation(kind, names, options))
        return self.operations[-1]

    def __len__(self) -> int:
        return len(self.operations)

    def names(self, kind: str) -> list[str]:
        """Return all names that operations of this kind were done to, oldest first."""
        return [name for op in self.operations if op.kind == kind for name in op.names]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        return {**vars(self), "operations": [op.to_dict() for op in self.operations]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_dict` wrote; raises `PlanError` if it is something else."""
        operations = data.get("operations")
        if not isinstance(operations, list):
            raise PlanError("the plan has no list of operations: the file is damaged")
        done = [Operation.from_dict(op) for op in operations]
        return cls(data.get("base"), str(data.get("fingerprint", "")), done)


class Network(nn.Module):
    """A trained model as a graph of ordinary modules.

    Call it, train it, move it like any module. `shoal.capture` makes one; operations whose names
    end in `_` change it in place and record themselves in `plan`. Parameters, buffers and
    `state_dict` keys are the original model's, which it shares until `copy` is called.

    Attributes:
        graph: the forward pass; nodes call modules of this network or ATen operations. Call
            `recompile` after changing it.
        inputs: what the network is called with.
        plan: what was done to the network since capture.
        opaque: operations that could not be raised to modules, with reasons.
        notes: what else the user should know about the capture.
        meta: what goes with the network when it is saved, as JSON values: class names,
            normalisation, task, figures. The network itself uses nothing of it.

    Example:
        >>> import shoal, torch
        >>> net = shoal.capture(shoal.models.digits_resnet(), torch.randn(2, 1, 8, 8))
        >>> net.sites[0].kind, len(net.blocks), net(torch.randn(5, 1, 8, 8)).shape
        ('relu', 6, torch.Size([5, 10]))
        >>> operations = shoal.drop_(net, "layer1.1")
        >>> net.plan.names("drop")
        ['layer1.1']
    """

    graph: fx.Graph
    inputs: InputSpec
    plan: Plan
    opaque: tuple[Opaque, ...]
    notes: tuple[str, ...]
    meta: dict[str, Any]
    _output_structure: pytree.TreeSpec
    _site_records: dict[str, tuple[str, str]]  # kind and path of each site, by name
    _root: nn.Module
    _compiled: Callable[..., Any]  # the graph's own code
    _run: Callable[..., Any]  # that, or what lets somebody listen
    _context: str | None
    _view: Graph | None

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
        if self._simple_call and len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            leaves = list(args)
            if self._checks_sizes:
                self.inputs.check_sizes(leaves)
        else:
            leaves = self.inputs.flatten(args, kwargs)
        if torch.compiler.is_compiling():
            outputs = self._run(self._root, *leaves)
        else:
            outputs = self._ran(leaves)
        if self._one_output:
            return outputs[0]
        return pytree.tree_unflatten(list(outputs), self._output_structure)

    def in_form(self, outputs: Sequence[Tensor]) -> Any:
        """Return all output tensors in order, such as a file gives them, as the network does."""
        if self._output_structure.num_leaves != len(outputs):  # it also gives what is no tensor
            return tuple(outputs) if len(outputs) > 1 else outputs[0]
        return pytree.tree_unflatten(list(outputs), self._output_structure)

    def _ran(self, leaves: Sequence[Any]) -> Any:
        try:
            if self._context is None:
                return self._run(self._root, *leaves)
            with restored_on_error(self._context):
                return self._run(self._root, *leaves)
        except RuntimeError as error:
            reason = self.inputs.wrong_type(leaves, dtype_of(self))
            if reason:
                raise CaptureError(reason) from error
            raise

    def set_sizes(self, sizes: Sizes) -> None:
        """Say which sizes of inputs the network is for."""
        self._keep(inputs=replace(self.inputs, sizes=sizes), _checks_sizes=not sizes.free)

    def recompile(self) -> None:
        """Compile the forward pass again; needed after `graph` was changed."""
        self.graph.lint()
        code = self.graph.python_code("self")
        name = f"<shoal network {id(self):x}>"
        scope: dict[str, Any] = dict(code.globals)
        exec(compile(code.src, name, "exec"), scope)
        linecache.cache[name] = (len(code.src), None, code.src.splitlines(True), name)
        root = nn.Module()  # bare, with this one's very children and tensors: free of name clashes
        root._modules, root._parameters, root._buffers = tables_of(self)
        one_tensor = pytree.tree_structure(((0,), {}))
        self._keep(
            _compiled=scope["forward"],
            _run=scope["forward"],
            _root=root,
            _view=None,
            _context=context_device(self.graph),
            _simple_call=self.inputs.structure == one_tensor,
            _one_output=self._output_structure.is_leaf(),
            _checks_sizes=not self.inputs.sizes.free,
        )
        self._renew_forward()

    def _renew_forward(self) -> None:
        """Give this network a forward of its own, by a class of its own, as fx.GraphModule has.

        `torch.compile` then keeps what it compiles of it apart from all else, and what it compiled
        before a change does not count against its limit.
        """
        self.__class__ = type("Network", (Network,), {"forward": with_own_code(Network.forward)})

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
        """Put `module` at an existing path; tensors there that the graph itself reads stay."""
        parent, _, name = path.rpartition(".")
        old = self._root.get_submodule(path)
        hand_on(old, module, read_of(self.graph, self._root, old))
        self.get_submodule(parent)._modules[name] = module
        self.changed()

    def name_rectifier(self, site: str, kind: str) -> None:
        """Say that a site has a rectifier of another kind from now on, which was put there."""
        _, path = self._site_records[site]
        self._keep(_site_records={**self._site_records, site: (kind, path)}, _view=None)

    def changed(self) -> None:
        """Make `view` analyse the graph again; needed after a layer was changed in place."""
        self._keep(_view=None)
        self._renew_forward()

    @property
    def code(self) -> str:
        """The forward pass as Python source, for reading."""
        return str(self.graph.python_code("self").src)

    # ------------------------------------------------------------------ what it is made of

    @property
    def view(self) -> Graph:
        """The graph with what was found in it, once; good until the network is changed."""
        if self._view is None:
            self._keep(_view=Graph(self.graph, self._root, self._site_records))
        assert self._view is not None
        return self._view

    @property
    def sites(self) -> list[Site]:
        """All rectifier sites in the order of the forward pass, linearized ones included."""
        return _Places(self.view.sites.values())

    @property
    def sites_left(self) -> int:
        """How many sites still have their rectifier."""
        return sum(site.linearized is None for site in self.sites)

    @property
    def blocks(self) -> list[Block]:
        """All residual blocks in the order of the forward pass, removable or not."""
        return _Places(self.view.blocks.values())

    @property
    def stretches(self) -> list[Stretch]:
        """All stretches that one layer could stand for, in the order of the forward pass."""
        return list(self.view.stretches.values())

    def site(self, name: str) -> Site:
        """Return the site of that name; raises `NameNotFoundError` with the nearest names."""
        return _named("site", name, self.view.sites)

    def block(self, name: str) -> Block:
        """Return the block of that name; raises `NameNotFoundError` with the nearest names."""
        return _named("block", name, self.view.blocks)

    def stretch(self, name: str) -> Stretch:
        """Return the stretch of that name; raises `NameNotFoundError` with the nearest names."""
        return _named("block or stretch that can be collapsed", name, self.view.stretches)

    def node_of(self, name: str) -> fx.Node:
        """Return the graph node that calls the module at `name` (its first call)."""
        return _named("module", name, self.view.calls)

    def example_inputs(self, batch: int | None = None, seed: int = 0) -> Call:
        """Return random inputs of the captured shapes on the network's device, in its type.

        A `batch` of None keeps the captured number of samples. Floating-point inputs are drawn from
        the normal distribution by `seed`; integer inputs are zeros.
        """
        generator = torch.Generator().manual_seed(seed)
        weight = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        moved = self.inputs.weights not in (None, weight.dtype)

        def example(spec: Any) -> Any:
            if not isinstance(spec, TensorSpec):
                return spec
            shape = (batch, *spec.shape[1:]) if batch is not None and spec.shape else spec.shape
            if not spec.dtype.is_floating_point:
                return torch.zeros(shape, dtype=spec.dtype, device=weight.device)
            value = torch.randn(shape, generator=generator)
            return value.to(weight.device, weight.dtype if moved else spec.dtype)

        leaves = [example(spec) for spec in self.inputs.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.inputs.structure)
        return tuple(args), dict(kwargs)

    def example(self, batch: int | None = None, seed: int = 0) -> Inputs:
        """Return `example_inputs` as one value: a tuple, or a dict where some go by keyword."""
        return as_inputs(self.example_inputs(batch, seed), self.inputs.parameters)

    # ------------------------------------------------------------------ copying

    def copy(self) -> Network:
        """Return an independent copy: own parameters, own graph, own plan."""
        return copy.deepcopy(self)

    def sharing_copy(self) -> Network:
        """Return a copy with its own graph and plan that shares all parameters and buffers."""
        tensors = (*self.parameters(), *self.buffers())
        return copy.deepcopy(self, {id(tensor): tensor for tensor in tensors})

    def become(self, other: Network) -> None:
        """Take over all that `other`, which is not to be used any more, is; keep the plan."""
        hooks = {key: held for key, held in self.__dict__.items() if "_hooks" in key}
        state = {**other.__getstate__(), **hooks, "plan": self.plan}
        self.__dict__.clear()
        self.__setstate__(state)

    @contextmanager
    def unchanged_on_error(self) -> Iterator[None]:
        """Put back graph, modules, tensors' places and plan if what runs inside fails."""
        graph, records, opaque = self.graph, self._site_records, self.opaque
        done = list(self.plan.operations)
        held = [(module, [dict(table) for table in tables_of(module)]) for module in self.modules()]
        self._keep(graph=copy.deepcopy(graph))
        self.recompile()
        try:
            yield
        except BaseException:
            for module, kept in held:
                for mine, was in zip(tables_of(module), kept, strict=True):
                    mine.clear()
                    mine.update(was)
            self._keep(graph=graph, _site_records=records, opaque=opaque)
            self.plan.operations[:] = done
            self.recompile()
            raise

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _REMADE}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.recompile()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse pickling, which would tie a file to versions of shoal and PyTorch."""
        raise ShoalError("a Network cannot be pickled: save it with shoal.save(network, folder)")

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        memo[id(self)] = twin = Network.__new__(Network)
        for key in ("opaque", "notes", "inputs", "_output_structure"):  # shared
            memo[id(self.__dict__[key])] = self.__dict__[key]
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin


class _Places(list[_T], Shown):
    shown_by = "shoal.report.notebook:places_html"


def _named(what: str, name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise unknown_name(what, name, known)
    return known[name]
