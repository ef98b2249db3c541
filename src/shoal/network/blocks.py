"""Residual blocks, found in the graph and not by class names.

Every addition of a branch to a tensor from which the branch starts is a block. Where one operand is
computed from the other, that one is the shortcut and the branch starts there; else both start at
the addition's immediate dominator in the flow of data. A branch holds a parameter at least:
arithmetic alone, as in a rectifier that is written out, is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import fx, nn

from shoal.network.flow import Flow, upstream
from shoal.network.nodes import numbered
from shoal.network.ops import op_of
from shoal.network.weights import is_weighted, own_tensors

__all__ = ["Block", "find_blocks", "fix_block_names"]

aten = torch.ops.aten

_NAME = "block"  # in an addition's meta: the name its block was given at capture


@dataclass(frozen=True)
class Block:
    """A residual branch around which a shortcut runs.

    Attributes:
        name: the path of the module that computes it, where one does.
        removable: whether the branch can be dropped, leaving the shortcut.
        reason: why it cannot be, else an empty string.
        layers: paths of the branch's layers with weights.
        sites: names of the branch's rectifier sites.
        start: the node where branch and shortcut part.
        branch: the nodes of the branch, in the order of the graph.
        output: the branch's last node, an operand of the addition.
        addition: the node that joins branch and shortcut.
        shortcut: the addition's other operand.
    """

    name: str
    removable: bool
    reason: str
    layers: tuple[str, ...]
    sites: tuple[str, ...]
    start: fx.Node = field(repr=False, compare=False)
    branch: tuple[fx.Node, ...] = field(repr=False, compare=False)
    output: fx.Node = field(repr=False, compare=False)
    addition: fx.Node = field(repr=False, compare=False)
    shortcut: fx.Node = field(repr=False, compare=False)


def find_blocks(flow: Flow, root: nn.Module, sites: Collection[str]) -> list[Block]:
    """Return the residual blocks of a network in the order of the forward pass."""
    joints = _joints(flow, root)
    readers = _readers(flow, root)
    found = []
    for name, joint in zip(_names(joints, root), joints, strict=True):
        reason = _obstacle(joint, flow, root, readers)
        block = Block(
            name=name,
            removable=not reason,
            reason=reason,
            layers=tuple(_layer_path(n) for n in joint.branch if is_weighted(n, root)),
            sites=tuple(str(n.target) for n in joint.branch if n.target in sites),
            **joint._asdict(),
        )
        found.append(block)
    return found


_Readers = Mapping[int, Mapping[fx.Node, str]]  # by a parameter's id: who uses it, by what path


def _readers(flow: Flow, root: nn.Module) -> _Readers:
    """Return which nodes compute with each parameter."""
    found: dict[int, dict[fx.Node, str]] = {}
    for node in flow.order:
        for path, tensor in own_tensors(node, root, flow).items():
            if isinstance(tensor, nn.Parameter) and flow.carries(node):
                found.setdefault(id(tensor), {})[node] = path
    return found


def fix_block_names(graph: fx.Graph, root: nn.Module) -> None:
    """Write each block's name on its addition, so that it stays whatever is removed elsewhere."""
    joints = _joints(Flow(graph), root)
    for joint, name in zip(joints, _names(joints, root), strict=True):
        joint.addition.meta[_NAME] = name


class _Joint(NamedTuple):
    """An addition that joins a branch and its shortcut; see `Block`."""

    start: fx.Node
    branch: tuple[fx.Node, ...]
    output: fx.Node
    addition: fx.Node
    shortcut: fx.Node


def _joints(flow: Flow, root: nn.Module) -> list[_Joint]:
    additions = (node for node in flow.order if op_of(node.target).addition == 1.0)
    joints = (_joint(addition, flow, root) for addition in additions)
    return [joint for joint in joints if joint is not None]


def _joint(addition: fx.Node, flow: Flow, root: nn.Module) -> _Joint | None:
    operands = [a for a in addition.args[:2] if isinstance(a, fx.Node) and flow.carries(a)]
    if len(operands) != 2 or operands[0] is operands[1]:
        return None
    start = flow.dominator.get(addition)
    shortcut = next((k for k in (0, 1) if flow.leads(operands[k], operands[1 - k])), None)
    if shortcut is not None:
        start = operands[shortcut]
        longer = 1 - shortcut
    elif start is None:
        return None
    elif _sums_from(operands[0], start) != _sums_from(operands[1], start):
        longer = 1 if _sums_from(operands[0], start) else 0
    else:
        longer = _heavier(operands, start, flow, root)
    branch = flow.between(start, operands[longer])
    if _NAME not in addition.meta and not any(own_tensors(n, root, flow) for n in branch):
        return None
    return _Joint(start, branch, operands[longer], addition, operands[1 - longer])


def _heavier(operands: Sequence[fx.Node], start: fx.Node, flow: Flow, root: nn.Module) -> int:
    """Return which operand has more layers with weights on its way from `start`."""
    weights = [
        sum(is_weighted(node, root) for node in flow.between(start, operand))
        for operand in operands
    ]
    return 0 if weights[0] >= weights[1] else 1


def _sums_from(node: fx.Node, start: fx.Node) -> bool:
    """Whether `node` is `start` plus branches: an identity shortcut through additions."""
    return start in upstream(node, lambda n: n is start or op_of(n.target).addition == 1.0)


def _layer_path(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else str(node.meta.get("path", node.name))


def _obstacle(joint: _Joint, flow: Flow, root: nn.Module, readers: _Readers) -> str:
    """Return why the branch cannot be dropped, or an empty string."""
    start, branch, _, addition, shortcut = joint
    inside = set(branch)
    if not _sums_from(shortcut, start):
        before, after = start.meta.get("shape"), addition.meta.get("shape")
        if before != after:
            return f"the shortcut changes the shape from {_text(before)} to {_text(after)}"
        return "the shortcut is not the identity: it computes something itself"
    if shortcut.meta.get("shape") != addition.meta.get("shape"):
        return "the addition broadcasts the shortcut"
    if shortcut.meta.get("dtype") != addition.meta.get("dtype"):
        return "the addition changes the type of the shortcut"
    if addition.kwargs.get("alpha", 1) != 1 and addition.args[0] is not shortcut:
        return "the addition scales the shortcut"
    for node in branch:
        if flow.escapes(node, inside | {addition}):
            return f"'{node.name}' inside the branch is also used outside it"
        for source in node.all_input_nodes:
            if source not in inside and source is not start and flow.carries(source):
                return f"the branch also reads '{source.name}', which another part computes"
        if node.meta.get("opaque") and not is_weighted(node, root):
            return f"it holds '{node.name}', which was not understood"
    for users in readers.values():
        own = [path for node, path in users.items() if node in inside]
        if own and len(own) < len(users):
            return f"its weights '{own[0]}' are used elsewhere too"
    return ""


def _text(shape: tuple[int | None, ...] | None) -> str:
    return "?" if shape is None else "×".join("N" if s is None else str(s) for s in shape)


# ---------------------------------------------------------------------- names


def _names(joints: Sequence[_Joint], root: nn.Module) -> list[str]:
    """Name each block by the module that adds; where one adds twice, by the branch's main child.

    A name given at capture stays.
    """
    paths = [str(joint.addition.meta.get("path", "")) for joint in joints]
    shared = Counter(paths)
    taken: set[str] = {j.addition.meta[_NAME] for j in joints if _NAME in j.addition.meta}
    names = []
    for path, joint in zip(paths, joints, strict=True):
        if _NAME in joint.addition.meta:
            names.append(joint.addition.meta[_NAME])
            continue
        name = path
        if shared[path] > 1 or not path:
            main = _main_child(path, joint.branch, root)
            name = main or f"{path}.{joint.addition.name}".lstrip(".")
        name = numbered(name, taken.__contains__)
        taken.add(name)
        names.append(name)
    return names


def _main_child(path: str, branch: tuple[fx.Node, ...], root: nn.Module) -> str | None:
    """Return the child of `path` that holds most of the branch's parameters."""
    prefix = f"{path}." if path else ""
    size: Counter[str] = Counter()
    for node in branch:
        if node.op != "call_module" or not str(node.target).startswith(prefix):
            continue
        child = prefix + str(node.target)[len(prefix) :].split(".")[0]
        module = root.get_submodule(str(node.target))
        size[child] += sum(p.numel() for p in module.parameters(recurse=False))
    return size.most_common(1)[0][0] if size else None
