"""Let tensors that a forward pass makes follow the network's device and floating-point type.

An export writes down where and as what each tensor was made on the day of the capture. A network
that is moved to a GPU or turned to bfloat16 must make them there, so these constants are read off
the input instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from shoal.network.ops import op_of

__all__ = ["Placement"]


class Placement:
    """Frees the nodes of one graph of devices and types that were only the example's."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._inputs: list[fx.Node] = []
        self._read: dict[str, fx.Node] = {}

    def add_input(self, node: fx.Node) -> None:
        """Note a placeholder, whose device and type others may follow."""
        if "shape" in node.meta:
            self._inputs.append(node)

    def free(self, node: fx.Node) -> None:
        """Rewrite the device and type that a call names, where they were only the example's."""
        target = node.target
        if not isinstance(target, OpOverload) or not self._inputs:
            return
        op = op_of(target)
        source = node.args[0] if node.args else None
        takes_tensor = isinstance(source, fx.Node) and "shape" in source.meta
        if takes_tensor and op.shape_only:
            self._follow_source(node)
        elif op.converts or not takes_tensor:  # a softmax in float32 means the type it names
            self._follow_input(node)

    def _follow_source(self, node: fx.Node) -> None:
        """Drop what the operation takes over from its first argument by itself."""
        source = node.all_input_nodes[0]
        kwargs = {k: v for k, v in node.kwargs.items() if k not in ("device", "pin_memory")}
        if kwargs.get("dtype") is source.meta.get("dtype"):
            kwargs.pop("dtype", None)
        node.kwargs = kwargs

    def _follow_input(self, node: fx.Node) -> None:
        values = [*node.args, *node.kwargs.values()]
        if not any(isinstance(value, (torch.device, torch.dtype)) for value in values):
            return
        args = [self._followed(node, value) for value in node.args]
        kwargs = {k: self._followed(node, v) for k, v in node.kwargs.items()}
        if "pin_memory" in kwargs and "device" in kwargs:
            del kwargs["pin_memory"]
        node.args, node.kwargs = tuple(args), kwargs

    def _followed(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, torch.device):
            return self._attribute("device", self._inputs[0])
        if isinstance(value, torch.dtype) and value.is_floating_point:
            floating = [n for n in self._inputs if n.meta["dtype"].is_floating_point]
            if floating and floating[0].meta["dtype"] is value:
                return self._attribute("dtype", floating[0])
        return value

    def _attribute(self, name: str, source: fx.Node) -> fx.Node:
        """Return the node that reads an input's device or type; there is one for all."""
        if name not in self._read:
            with self.graph.inserting_after(source):
                self._read[name] = self.graph.call_function(getattr, (source, name))
            self._read[name].meta = {"path": ""}
        return self._read[name]
