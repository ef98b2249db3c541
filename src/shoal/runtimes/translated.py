"""Networks in the form of ONNX, which several runtimes read; the latest are remembered.

Translating takes seconds, and a search has the same network measured in ONNX Runtime and OpenVINO,
at each step beside others, and quantized for both.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import PlanError, ShoalError
from shoal.network import Network
from shoal.network.about import described
from shoal.network.inputs import Inputs
from shoal.network.saving import content_hash
from shoal.runtimes.onnx_file import MAX_BYTES, label, onnx_model
from shoal.runtimes.program import Example, flat_program, outputs_of, prepare

_MOST_BYTES = 256_000_000  # that are remembered
_remembered: OrderedDict[str, bytes] = OrderedDict()  # the latest last


def translated(network: Network, example: Example, opset: int | None = None) -> Any:
    """Return a network as an `onnx.ModelProto` that tells what goes with it; see `onnx_model`.

    Raises `ShoalError` too if its weights are more than one file holds.
    """
    size = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    if size > MAX_BYTES:
        raise ShoalError(
            f"the network's weights take {size / 1e9:.1f} GB and one .onnx file holds at most "
            f"{MAX_BYTES / 1e9:.1f} GB: export to .pt2"
        )
    outputs = outputs_of(network, example)
    model = onnx_model(flat_program(network, example), example.names, outputs, opset)
    label(model, told(network, example))
    return model


def told(network: Network, example: Example) -> dict[str, Any]:
    """Return what a file says of its network, as JSON values; it takes samples of the example's."""
    shapes = [list(tensor.shape[1:]) for tensor in example.tensors]
    return {**described(network), "input_shape": shapes[0] if len(shapes) == 1 else shapes}


@torch.inference_mode(False)  # which a caller may be in, and whose tensors cannot be traced
@torch.no_grad()
def onnx_bytes(network: nn.Module, inputs: Inputs) -> bytes:
    """Return the content of a network's `.onnx` file, given one batch of any size; not checked."""
    net, example = prepare(network, inputs)
    key = _key(net, example)
    content = _remembered.pop(key, None)
    if content is None:
        content = translated(net, example).SerializeToString()
    if key and len(content) <= _MOST_BYTES:
        _remembered[key] = content
        while sum(map(len, _remembered.values())) > _MOST_BYTES:
            _remembered.popitem(last=False)
    return content


def _key(network: Network, example: Example) -> str:
    """Return what decides the content, as a hash; "" for a network that cannot be written down."""
    try:
        network_hash = content_hash(network)
    except PlanError:
        return ""
    leaves = [
        (leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else leaf
        for leaf in example.leaves
    ]
    beside = json.dumps(told(network, example), sort_keys=True)
    return hashlib.sha256(f"{network_hash} {leaves} {beside}".encode()).hexdigest()
