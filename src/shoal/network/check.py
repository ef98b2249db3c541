"""Check a captured network against the model it was captured from."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from shoal.errors import CaptureError
from shoal.modes import eval_mode
from shoal.network.exporting import without_fast_path
from shoal.network.inputs import map_tensors, tensors_of
from shoal.network.network import Network
from shoal.network.runner import Runner, Tap

__all__ = ["check_capture"]

# On a CPU both run the same kernels and agree to the bit; elsewhere a library may choose another
# kernel for a second call, which moves the last digits.
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def check_capture(
    model: nn.Module, network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Compare outputs of both in eval mode on the example batch and on its first sample.

    Raises:
        CaptureError: they differ; names the first layer that does.
    """
    first_sample = map_tensors(lambda x: x[:1] if x.dim() > 0 else x, (args, kwargs))
    with without_fast_path(), eval_mode(network), torch.no_grad():
        for call in ((args, kwargs), first_sample):
            _compare(model, network, *call)


def _compare(
    model: nn.Module, network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    expected, structure = _outputs(model, args, kwargs)
    try:
        got, own_structure = _outputs(network, args, kwargs)
    except Exception as error:
        batch = next(x.shape[0] for x in tensors_of((args, kwargs)) if x.dim() > 0)
        reason = " ".join(str(error).split())[:200]
        raise CaptureError(
            f"the captured network does not run at batch size {batch}: {reason}"
        ) from error
    if structure != own_structure or not all(map(_agree, expected, got)):
        again, _ = _outputs(model, args, kwargs)
        if not all(map(_agree, expected, again)):
            raise CaptureError(
                f"{type(model).__name__} gives other outputs when it is called again on the same "
                "inputs in eval mode: make what it draws or counts depend on self.training"
            )
        raise CaptureError(
            "the captured network does not compute what the model computes"
            f"{_first_difference(model, network, args, kwargs)}"
        )


def _outputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], pytree.TreeSpec]:
    """Call a module on copies of the inputs, which it may overwrite."""
    args, kwargs = map_tensors(Tensor.clone, (args, kwargs))
    return pytree.tree_flatten(module(*args, **kwargs))


def _agree(a: object, b: object) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return a == b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    if not a.dtype.is_floating_point:
        return False
    tolerance = _TOLERANCE.get(a.dtype, 1e-4)
    scale = float(a.nan_to_num().abs().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _first_difference(
    model: nn.Module, network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str:
    """Return " from the layer 'x' on", or a hint if no layer of both can be compared."""
    seen: dict[str, list[Any]] = defaultdict(list)
    outputs: list[tuple[str, Any]] = []
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    taps = [Tap(n, (n,), lambda v, n=n: outputs.append((n.target, v))) for n in calls]
    handles = []
    for path, module in model.named_modules(remove_duplicate=False):
        if not module._modules:

            def keep(_m: nn.Module, _i: Any, output: Any, path: str = path) -> None:
                seen[path].append(output.clone() if isinstance(output, Tensor) else output)

            handles.append(module.register_forward_hook(keep))
    try:
        model(*args, **kwargs)
        Runner(network, taps=taps).values(*network.inputs.flatten(args, kwargs))
    finally:
        for handle in handles:
            handle.remove()
    for path, value in outputs:
        known = seen.get(path)
        if known and not _agree(known.pop(0), value):
            return f": they differ from the layer '{path}' on"
    return ": they differ outside the layers, in the model's own forward code"
