"""Capture a trained model as a `Network`, and check that nothing changed."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from shoal.errors import CaptureError
from shoal.modes import eval_mode, kept_flags
from shoal.network.agreement import compare_leaf
from shoal.network.as_it_was import as_it_was
from shoal.network.blocks import fix_block_names
from shoal.network.call_form import InputSpec, TensorSpec
from shoal.network.exporting import Exported, as_layers, export_model, own_gradients
from shoal.network.input_sizes import Sizes
from shoal.network.inputs import Call, as_call, map_tensors, tensors_of
from shoal.network.network import Network, Plan
from shoal.network.normalize import make_out_of_place
from shoal.network.paths import Skeleton
from shoal.network.raising import raise_graph
from shoal.network.refused import assert_capturable
from shoal.network.runner import Runner, Tap
from shoal.network.sizes import find_sizes, fixed_sizes, other_sizes
from shoal.network.training_only import restore_training_only

# On a CPU both agree to the bit; elsewhere a library may choose another kernel for a second call.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


# Long because each of its arguments is explained; the body is short.
def capture(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    check: bool = True,
) -> Network:
    """Capture `model` as a graph of ordinary modules that hold its own parameters.

    The network computes what the model computes, in eval and in training mode, for any batch size,
    and for any height, width or length where the model's forward pass allows that; it refuses other
    sizes (`network.inputs.size_lines()` says which it takes). `state_dict` keys are the model's.
    Both share parameters: train one and the other follows (`Network.copy` parts them). The model
    itself is left as it was, with the buffers that its first call makes.

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
    assert_capturable(model)
    if not isinstance(example_inputs, Tensor | Mapping | tuple | list):
        raise CaptureError(
            "example_inputs must be a tensor, a tuple of positional inputs or a mapping of keyword "
            f"inputs, not {type(example_inputs).__name__}"
        )
    call = as_call(example_inputs)
    call[1].update(example_kwargs or {})
    leaves, structure = pytree.tree_flatten(call)
    batch = _batch_size(leaves)
    with as_it_was(model, but_new_buffers=True):
        with kept_flags(model):
            evaluated = export_model(model.eval(), call, batch)
            _assert_tensor_output(model, evaluated)
            found = find_sizes(model, call, batch, evaluated)
            kept = make_out_of_place(evaluated.graph)
            notes = (
                *_gradient_notes(model, call),
                *_restore_training(model, call, batch, evaluated),
            )
            found.apply(evaluated.graph)
        inputs = _input_spec(model, structure, call[1], leaves, found.sizes)
        network = _assemble(model, evaluated, kept, inputs=inputs, notes=notes)
    if check:
        with as_it_was(model):
            _check(model.eval(), network, call)
    return network


def _assemble(
    model: nn.Module, exported: Exported, kept: Mapping[fx.Node, fx.Node], **state: Any
) -> Network:
    network = Network(meta={}, _output_structure=exported.output_structure, **state)
    graph, sites, opaque, others = raise_graph(exported, Skeleton(model, network), kept)
    if others:
        network._keep(notes=(*network.notes, _others_note(others)))
    # A hash of the architecture: its sites, and the names and shapes of its tensors.
    tensors = {name: list(value.shape) for name, value in network.state_dict().items()}
    text = json.dumps([*([k, kind] for k, (kind, _) in sites.items()), tensors], sort_keys=True)
    plan = Plan(fingerprint=hashlib.sha256(text.encode()).hexdigest())
    network._keep(graph=graph, plan=plan, opaque=opaque, _site_records=sites)
    network.recompile()
    fix_block_names(network.graph, network)
    network.train(model.training)
    originals = dict(model.named_modules(remove_duplicate=False))
    for path, module in network.named_modules(remove_duplicate=False):
        if path in originals:  # frozen norms stay frozen
            module.training = originals[path].training
    return network


def _gradient_notes(model: nn.Module, call: Call) -> tuple[str, ...]:
    found = own_gradients(model, call)
    return found and (
        f"the model defines the gradient of {', '.join(found)} itself "
        "(torch.autograd.Function): the network trains with the gradient of what it computes",
    )


def _others_note(others: list[str]) -> str:
    counts = Counter(others)
    shown = [name + (f" ({count} times)" if count > 1 else "") for name, count in counts.items()]
    listed = ", ".join(shown[:5]) + (", …" if len(shown) > 5 else "")
    return f"activations that are not known as rectifiers stay as they are: {listed}"


def _batch_size(leaves: list[Any]) -> int:
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0}
    if not sizes:
        raise CaptureError("example_inputs hold no tensor with a batch dimension")
    if len(sizes) > 1:
        raise CaptureError(
            "dimension 0 of every input must be the batch, but the example's inputs have "
            f"{sorted(sizes)} samples: wrap the model in one that takes its inputs batch first "
            "(a recurrent state, [layers, batch, size], transposed)"
        )
    batch = int(sizes.pop())
    if batch < 2:
        raise CaptureError(
            f"the example batch has {batch} sample{'s' * (batch != 1)}: give at least 2, so that "
            "the batch size can stay free"
        )
    return batch


def _input_spec(
    model: nn.Module,
    structure: pytree.TreeSpec,
    kwargs: Mapping[str, Any],
    leaves: list[Any],
    sizes: Sizes,
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
    return InputSpec(structure, tuple(kwargs), parameters, specs, weights, sizes)


def _restore_training(
    model: nn.Module, call: Call, batch: int, evaluated: Exported
) -> tuple[str, ...]:
    """Put what only training does into the graph; return notes on what could not be put back."""
    if all(
        # Known not to look at its training flag beyond what is raised.
        type(module).__module__.startswith(("torch.nn.modules", "shoal.models"))
        and not isinstance(module, nn.MultiheadAttention)
        for module in model.modules()
    ):
        return ()
    try:
        with kept_flags(model):
            trained = export_model(model.train(), call, batch)
    except CaptureError:
        return ("training mode could not be captured: the network trains as its eval-mode graph",)
    make_out_of_place(trained.graph)
    lost = restore_training_only(evaluated.graph, trained.graph)
    shown = ", ".join(lost[:3]) + (", …" if len(lost) > 3 else "")
    note = f"only in training mode the model also computes {shown}: the network leaves that out"
    return (note,) if lost else ()


def _assert_tensor_output(model: nn.Module, exported: Exported) -> None:
    output = next(node for node in exported.graph.nodes if node.op == "output")
    if not any(isinstance(n.meta.get("val"), Tensor) for n in output.all_input_nodes):
        raise CaptureError(
            f"{type(model).__name__} returns no tensor that depends on its inputs: a model must "
            "return a tensor, or a tuple, list or dictionary that holds one"
        )


# ---------------------------------------------------------------------- the check


def _check(model: nn.Module, network: Network, call: Call) -> None:
    """Compare outputs of both in eval mode on the example batch and on its first sample."""
    first_sample = map_tensors(lambda x: x[:1] if x.dim() > 0 else x, call)
    with as_layers(), eval_mode(network), torch.no_grad():
        _check_call(model, network, call)
        _check_one_sample(model, network, first_sample)
        _check_other_sizes(model, network, first_sample)


def _check_one_sample(model: nn.Module, network: Network, call: Call) -> None:
    """Compare outputs for one sample, unless the model takes another branch for it."""
    sizes, leaves = network.inputs.sizes, pytree.tree_leaves(call)
    broken = [c for c in sizes.conditions if not sizes.holds(c, leaves)]
    network.set_sizes(sizes.without(broken))  # PyTorch notes some that nothing depends on
    try:
        _check_call(model, network, call)
    except CaptureError:
        if not broken:
            raise
        network.set_sizes(sizes)
    except Exception:  # the model itself refuses one sample, as a norm of batch statistics does
        network.set_sizes(sizes)


def _check_other_sizes(model: nn.Module, network: Network, call: Call) -> None:
    """Compare outputs at another size that should be free; where they differ, fix all sizes."""
    sizes = network.inputs.sizes
    for other in other_sizes(call, sizes):
        try:
            _check_call(model, network, other)
        except CaptureError:
            network.set_sizes(fixed_sizes(call, sizes.conditions))
        except Exception:  # the model itself is not for this size
            continue
        return


def _check_call(model: nn.Module, network: Network, call: Call) -> None:
    def outputs(module: nn.Module) -> Any:
        args, kwargs = map_tensors(Tensor.clone, call)  # it may overwrite them
        return module(*args, **kwargs)

    expected = outputs(model)
    try:
        found = outputs(network)
    except Exception as error:
        batch = next(x.shape[0] for x in tensors_of(call) if x.dim() > 0)
        reason = " ".join(str(error).split())[:200]
        raise CaptureError(
            f"the captured network does not run at batch size {batch}: {reason}"
        ) from error
    if _agree(expected, found):
        return
    if not _agree(expected, outputs(model)):
        raise CaptureError(
            f"{type(model).__name__} gives other outputs when it is called again on the same "
            "inputs in eval mode: make what it draws or counts depend on self.training"
        )
    raise CaptureError(
        "the captured network does not compute what the model computes"
        f"{_first_difference(model, network, call)}"
    )


def _agree(expected: Any, found: Any) -> bool:
    leaves, structure = pytree.tree_flatten(expected)
    own_leaves, own_structure = pytree.tree_flatten(found)
    return structure == own_structure and all(map(_leaves_agree, leaves, own_leaves))


def _leaves_agree(a: Any, b: Any) -> bool:
    found = compare_leaf(a, b)
    if found.identical or found.mismatch or a.dtype != b.dtype:
        return found.identical
    return a.is_floating_point() and found.max_rel_error <= _TOLERANCE.get(a.dtype, 1e-4)


def _first_difference(model: nn.Module, network: Network, call: Call) -> str:
    """Return " from the layer 'x' on", or a hint if no layer of both can be compared."""
    seen: dict[str, list[Any]] = defaultdict(list)
    outputs: list[tuple[str, Any]] = []
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    taps = [Tap(n, (n,), lambda v, n=n: outputs.append((n.target, v))) for n in calls]

    def keep(path: str) -> Any:
        return lambda _module, _inputs, output: seen[path].append(map_tensors(Tensor.clone, output))

    handles = [
        module.register_forward_hook(keep(path))
        for path, module in model.named_modules(remove_duplicate=False)
        if not module._modules
    ]
    try:
        model(*call[0], **call[1])
        Runner(network, taps=taps).values(*network.inputs.flatten(*call))
    finally:
        for handle in handles:
            handle.remove()
    for path, value in outputs:
        known = seen.get(path)
        if known and not _agree(known.pop(0), value):
            return f": they differ from the layer '{path}' on"
    return ": they differ outside the layers, in the model's own forward code"
