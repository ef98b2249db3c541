"""The size of a network: its work in multiply-accumulates (MACs), its parameters, its depth.

PyTorch's `FlopCounterMode` counts two FLOPs per multiply-accumulate. Here its number is halved and
assigned to modules, and what it ignored silently is named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import translate
from functools import partial
from math import prod
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker
from typing_extensions import override

from shoal.errors import ConfigError
from shoal.measure.on_shapes import on_shapes
from shoal.modes import eval_mode
from shoal.network import Network
from shoal.network.exporting import without_fast_path
from shoal.network.flow import reads_shape, writes
from shoal.network.inputs import (
    Inputs,
    as_call,
    batch_size,
    borrowed,
    home_device,
    map_tensors,
)  # fmt: skip
from shoal.network.modules import ByMode
from shoal.network.ops import op_of
from shoal.network.paths import lookup_tensor
from shoal.network.runner import Runner


@dataclass(frozen=True)
class MacCount:
    """The multiply-accumulates of one sample (half of what is often printed as FLOPs)."""

    total: int  # those of the whole batch divided by the batch size
    # By module path, each without its children's; the empty path is the model itself (functional
    # calls in its own forward). The values sum to `total`.
    by_module: dict[str, int]
    uncounted: tuple[str, ...] = ()  # operations that were run and are not known, even to be free

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {**asdict(self), "uncounted": list(self.uncounted)}


def count_params(model: nn.Module) -> int:
    """Return the number of parameter elements; a parameter used in several places counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example_inputs: Inputs) -> MacCount:
    """Count the multiply-accumulates that `model` spends on one sample in eval mode.

    Convolutions, linear layers, matrix products and attention count, wherever they are called
    (modules, functions, fused kernels); normalisations, activations, pooling and other elementwise
    work do not, as is the custom. Biases are free. The model is run once on shape-only tensors,
    which computes nothing; a model whose control flow depends on values is run once for real.
    The model is left exactly as it was.

    Args:
        model: any module.
        example_inputs: a tensor, a tuple of them, or a dict of keyword inputs, batch first. Work
            that does not depend on the batch is divided by its size, too.

    Raises:
        ConfigError: `model` is not a module, or cannot be called with these inputs.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"counting MACs needs an nn.Module, not {type(model).__name__}: pass the model itself"
        )
    samples = batch_size(example_inputs)
    device = home_device(model, example_inputs)
    call = as_call(map_tensors(lambda t: t.detach().to(device), example_inputs))
    with borrowed(model), torch.no_grad():
        flops, unknown = on_shapes(partial(_counted, model), *call, "counting MACs")
    by_module = {path: round(n / 2 / samples) for path, n in flops.items() if n}
    return MacCount(sum(by_module.values()), by_module, tuple(sorted(unknown)))


def _counted(model: nn.Module, args: Any, kwargs: Any) -> tuple[dict[str, int], set[str]]:
    """Return the FLOPs of the batch by module path, and the operations that are not known."""
    counter = FlopCounterMode(display=False, custom_mapping=_MORE_FORMULAS)
    counter.mod_tracker = _Innermost(model)
    # What is compiled would hide its operations, or be refused where they are watched.
    eagerly = torch.compiler.set_stance("force_eager")
    with eagerly, _plain_kernels(), _Witness(counter.flop_registry) as witness, counter:
        model(*args, **kwargs)
    flops = {path: sum(by_op.values()) for path, by_op in counter.flop_counts.items()}
    return flops, witness.unknown


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Keep attention and recurrent layers from disappearing into fused kernels."""
    # `mkldnn.flags` would do the same, but warns on machines without Intel GPUs.
    one_dnn = torch.backends.mkldnn.set_flags(False, _fp32_precision=None)
    plain_attention, plain_rnn = sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(False)
    try:
        with without_fast_path(), plain_attention, plain_rnn:
            yield
    finally:
        torch.backends.mkldnn.set_flags(one_dnn[0], _fp32_precision=None)


class _Innermost(ModuleTracker):
    """Names the innermost module that runs; PyTorch's own tracker names the outer ones too."""

    def __init__(self, model: nn.Module) -> None:
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._running: list[str] = [""]

    @property
    def parents(self) -> set[str]:  # type: ignore[override]
        return {self._running[-1]}

    def __enter__(self) -> _Innermost:
        # Global hooks: the model's own hooks are left alone, and its fast paths stay as they are.
        def enter(module: nn.Module, args: Any) -> None:
            if id(module) in self._paths:
                self._running.append(self._paths[id(module)])

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if id(module) in self._paths:
                self._running.pop()

        self._handles = (
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave, always_call=True),
        )
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class _Witness(TorchDispatchMode):
    """Records operations that are neither counted nor free."""

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unknown: set[str] = set()
        self._counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "_overloadpacket", None) not in self._counted and not _is_free(func):
            self.unknown.add(str(getattr(func, "_overloadpacket", func)))
        return func(*args, **(kwargs or {}))


def _product(left: int, right: int) -> Callable[..., int]:
    """The FLOPs of a matrix product of the arguments at `left` and `right`."""

    def flops(*shapes: Any, **_: Any) -> int:
        a, b = shapes[left], shapes[right]
        return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)  # (…, n, k) times (…, k, m), or (k)

    return flops


def _trilinear(first: Any, weight: Any, *_: Any, **__: Any) -> int:
    # nn.Bilinear: first input (n, i), weight (o, i, j), second input (n, j). Summing over i first
    # takes n·o·i·j products; the n·o·j of the second sum are a lower order and left out.
    return 2 * int(first[0]) * prod(weight)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


_aten = torch.ops.aten
# What PyTorch's counter does not know.
_MORE_FORMULAS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((_aten.mv, _aten.dot, _aten.vdot, _aten._int_mm), _product(0, 1)),
    **dict.fromkeys((_aten._addmm_activation, _aten.addbmm, _aten.addmv), _product(1, 2)),
    _aten._trilinear: _trilinear,
    # Only a graph that was decomposed before holds it: see `_plain_kernels`.
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}

# Free operations are told by PyTorch's tags, or where these lack them by name: normalisation,
# pooling, softmax, resampling, and moving data about.
_FREE_TAGS = {"pointwise", "reduction", "view_copy", "inplace_view"}
_FREE_NAMES = """
*batch_norm* *layer_norm *group_norm *rms_norm *response_norm *softmax norm linalg_vector_norm
_prelu_kernel hardswish hardsigmoid hardtanh glu rrelu_with_noise native_dropout bernoulli
*_pool[123]d* *upsample_* grid_sampler_[23]d affine_grid_generator im2col col2im *_pad_nd
*_pad[123]d pixel_* channel_shuffle cat stack repeat* roll flip rot90 unsafe_split* _unsafe_view
*copy clone contiguous lift_fresh _pin_memory resize set set_data empty* new_* zeros* ones* full*
fill zero arange linspace eye tri[lu]* rand* normal uniform scalar_tensor _local_scalar_dense
*index* gather scatter* *_scatter masked_* nonzero take embedding _embedding_bag* one_hot bucketize
searchsorted cumsum cumprod logcumsumexp cummax cummin topk *sort kthvalue median mode *unique* max
min argmax argmin any all sum mean var* std* amax amin aminmax logsumexp histc bincount
"""
_is_free_name = re.compile("|".join(map(translate, _FREE_NAMES.split()))).match


def _is_free(func: Any) -> bool:
    """Whether an operation needs no multiply-accumulates, as they are usually counted."""
    if not isinstance(func, OpOverload):
        return False
    if func.namespace == "prim" or func.is_view:
        return True
    tags = {str(tag).rpartition(".")[2] for tag in func.tags}
    return bool(tags & _FREE_TAGS) or _is_free_name(func._opname.rstrip("_")) is not None


# ---------------------------------------------------------------------- by node


def count_node_macs(network: Network, inputs: Inputs) -> dict[str, int]:
    """Count the multiply-accumulates of each node with any, by name, as `count_macs` does."""
    with eval_mode(network):
        counted = count_macs(_NodeByNode(network), inputs).by_module
    return {path.removeprefix(f"nodes.{_OWN}"): macs for path, macs in counted.items()}


_OWN = "node_"  # before the names of nodes, which may be those of a module's methods: "to", "type"


class _NodeByNode(nn.Module):
    """Runs a network's graph with a module for each node, so that each one's work is counted."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.nodes = nn.ModuleDict({_OWN + node.name: _Node() for node in network.graph.nodes})
        self._runner = _Runner(network, self.nodes)

    def forward(self, *args: Any, **kwargs: Any) -> None:
        self._runner.values(*self._runner.network.inputs.flatten(args, kwargs))


class _Node(nn.Module):
    def forward(self, run: Callable[[fx.Node], Any], node: fx.Node) -> Any:
        return run(node)


class _Runner(Runner):
    def __init__(self, network: Network, modules: nn.ModuleDict) -> None:
        super().__init__(network)
        self.modules = modules

    @override
    def run_node(self, n: fx.Node) -> Any:
        return self.modules[_OWN + n.name](super().run_node, n)


# ---------------------------------------------------------------------- depth


def depth(network: nn.Module) -> int:
    """Return the number of layers with weights on the longest path from input to output.

    Convolutions and linear layers count, as modules or as functions applied to a parameter, and so
    does each layer of a recurrent stack (not its steps in time) and each of the two projections of
    an `nn.MultiheadAttention`. Normalisation, embeddings, rectifiers with parameters, per-channel
    lines, and layers that see no input do not. So ResNet-18 has depth 18: the convolutions in its
    shortcuts are on no longest path. A module that the graph calls as a whole counts as the chain
    of the layers in it.

    Args:
        network: a captured network, or any module with an `fx.Graph` as its attribute `graph`.

    Raises:
        ConfigError: `network` has no graph.
    """
    graph = getattr(network, "graph", None)
    if not isinstance(graph, fx.Graph):
        raise ConfigError(
            f"the depth of a {type(network).__name__} is not known, because it has no graph: "
            "pass shoal.capture(model, example_inputs)"
        )
    return _longest_path(network, graph)


def _longest_path(network: nn.Module, graph: fx.Graph) -> int:
    lengths: dict[fx.Node, int] = {}  # layers before and in each node that depends on the input
    weighted: set[fx.Node] = set()  # nodes that depend on a parameter and not on the input
    for node in graph.nodes:
        sources = [source for source in node.all_input_nodes if not reads_shape(source)]
        before = [lengths[source] for source in sources if source in lengths]
        if node.op == "placeholder":
            lengths[node] = 0
        elif before:
            lengths[node] = max(before) + _layers_of(network, node, weighted)
            _pass_on_writes(node, lengths)
        elif not weighted.isdisjoint(sources) or (
            node.op == "get_attr"
            and isinstance(lookup_tensor(network, str(node.target)), nn.Parameter)
        ):
            weighted.add(node)
        if node.op == "output":
            return lengths.get(node, 0)
    return 0


def _layers_of(network: nn.Module, node: fx.Node, weighted: set[fx.Node]) -> int:
    """Return how many layers with weights this one node adds to a path through it."""
    target = node.target
    if node.op == "call_module":
        module = network.get_submodule(str(target))
        if not isinstance(module, ByMode):
            return _layers_in(module)
        target = module.operation
    if weighted.isdisjoint(node.all_input_nodes) or not node.op.startswith("call_"):
        return 0
    op = op_of(f"aten.{_target_name(target)}")
    if not op.depth:
        return int(op.weighted)  # if an operand comes from a parameter alone
    names = [a.name for a in target._schema.arguments] if isinstance(target, OpOverload) else []
    layers = dict(zip(names, node.args, strict=False)).get(op.depth)
    return layers if isinstance(layers, int) else 1


def _layers_in(module: nn.Module) -> int:
    if isinstance(module, nn.MultiheadAttention):
        return 2  # queries, keys and values side by side, then the output projection
    op = op_of(module)
    if op.depth:
        return int(getattr(module, op.depth))
    if op.weighted:
        return 1
    graph = getattr(module, "graph", None)
    if isinstance(graph, fx.Graph):
        return _longest_path(module, graph)
    return sum(_layers_in(child) for child in module.children())


def _target_name(target: Any) -> str:
    """Return 'linear' for `aten.linear.default`, `F.linear` and a method of that name."""
    if isinstance(target, OpOverload):
        return str(target._opname).rstrip("_")
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name.startswith("__"):  # of an operator, as in `__rmatmul__`
        return str(name).removeprefix("__r").removeprefix("__").removesuffix("__")
    return str(name).rstrip("_")


def _pass_on_writes(node: fx.Node, lengths: dict[fx.Node, int]) -> None:
    """Let what an in-place operation wrote count for the tensor it wrote to, through its views."""
    if not isinstance(node.target, OpOverload) or not writes(node):
        return
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        while isinstance(value, fx.Node):
            lengths[value] = max(lengths.get(value, 0), lengths[node])
            is_view = isinstance(value.target, OpOverload) and value.target.is_view
            value = value.args[0] if is_view else None
