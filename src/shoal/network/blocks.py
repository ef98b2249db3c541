"""Residual blocks, found in the graph and not by class names.

Every addition of a branch to a tensor from which the branch starts is a block. Where one operand is
computed from the other, that one is the shortcut and the branch starts there; else both start at
the addition's immediate dominator in the flow of data. A branch holds a parameter at least:
arithmetic alone, as in a rectifier that is written out, is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import fx, nn

from shoal.network.flow import Flow, is_weighted, own_tensors, upstream
from shoal.network.ops import op_of
from shoal.network.paths import numbered

aten = torch.ops.aten

_NAME = "block"  # in an addition's meta: the name its block was given at capture


@dataclass(frozen=True)
class Block:
    """A residual branch around which a shortcut runs."""

    name: str  # the path of the module that computes it, where one does
    removable: bool  # whether the branch can be dropped, leaving the shortcut
    reason: str  # why it cannot be, else an empty string
    layers: tuple[str, ...]  # paths of the branch's layers with weights
    sites: tuple[str, ...]  # names of the branch's rectifier sites
    start: fx.Node = field(repr=False, compare=False)  # where branch and shortcut part
    branch: tuple[fx.Node, ...] = field(repr=False, compare=False)  # in the order of the graph
    output: fx.Node = field(repr=False, compare=False)  # the branch's last node, which is added
    addition: fx.Node = field(repr=False, compare=False)  # joins branch and shortcut
    shortcut: fx.Node = field(repr=False, compare=False)  # the addition's other operand


class _Joint(NamedTuple):  # see `Block`
    start: fx.Node
    branch: tuple[fx.Node, ...]
    output: fx.Node
    addition: fx.Node
    shortcut: fx.Node


_Readers = list[dict[fx.Node, str]]  # of each parameter: the nodes that use it, by what path


def find_blocks(flow: Flow, root: nn.Module, sites: Collection[str]) -> dict[str, Block]:
    """Return the residual blocks of a network by name, in the order of the forward pass."""
    readers: dict[int, dict[fx.Node, str]] = {}
    for node in filter(flow.carries, flow.order):
        for path, tensor in own_tensors(node, root, flow).items():
            if isinstance(tensor, nn.Parameter):
                readers.setdefault(id(tensor), {})[node] = path
    found = {}
    for name, joint in _named_joints(flow, root).items():
        reason = _obstacle(joint, flow, root, list(readers.values()))
        found[name] = Block(
            name=name,
            removable=not reason,
            reason=reason,
            layers=tuple(
                str(n.target if n.op == "call_module" else n.meta.get("path", n.name))
                for n in joint.branch
                if is_weighted(n, root)
            ),
            sites=tuple(str(n.target) for n in joint.branch if n.target in sites),
            **joint._asdict(),
        )
    return found


def fix_block_names(graph: fx.Graph, root: nn.Module) -> None:
    """Write each block's name on its addition, so that it stays whatever is removed elsewhere."""
    for name, joint in _named_joints(Flow(graph), root).items():
        joint.addition.meta[_NAME] = name


def _named_joints(flow: Flow, root: nn.Module) -> dict[str, _Joint]:
    """Name each block by the module that adds, or the branch's main child; a name given stays."""
    additions = (node for node in flow.order if op_of(node.target).addition == 1.0)
    joints = [joint for joint in (_joint(node, flow, root) for node in additions) if joint]
    paths = [str(joint.addition.meta.get("path", "")) for joint in joints]
    taken = {joint.addition.meta.get(_NAME) for joint in joints}
    named: dict[str, _Joint] = {}
    for path, joint in zip(paths, joints, strict=True):
        name = joint.addition.meta.get(_NAME)
        if name is None:
            alone = path and paths.count(path) == 1
            name = path if alone else _main_child(path, joint.branch, root)
            name = name or f"{path}.{joint.addition.name}".lstrip(".")
            name = numbered(name, taken.__contains__)
            taken.add(name)
        named[name] = joint
    return named


def _joint(addition: fx.Node, flow: Flow, root: nn.Module) -> _Joint | None:
    operands = [a for a in addition.args[:2] if isinstance(a, fx.Node) and flow.carries(a)]
    if len(operands) != 2 or operands[0] is operands[1]:
        return None
    start = flow.dominator.get(addition)
    output, shortcut = operands
    if flow.leads(output, shortcut):
        start, output, shortcut = output, shortcut, output
    elif flow.leads(shortcut, output):
        start = shortcut
    elif start is None:
        return None
    elif _precedence(shortcut, start, flow, root) < _precedence(output, start, flow, root):
        output, shortcut = shortcut, output
    branch = flow.between(start, output)
    if _NAME not in addition.meta and not any(own_tensors(n, root, flow) for n in branch):
        return None
    return _Joint(start, branch, output, addition, shortcut)


def _precedence(operand: fx.Node, start: fx.Node, flow: Flow, root: nn.Module) -> tuple[bool, int]:
    """Order operands: the identity shortcut last, else the one with fewer layers with weights."""
    layers = sum(is_weighted(node, root) for node in flow.between(start, operand))
    return _sums_from(operand, start), -layers


def _sums_from(node: fx.Node, start: fx.Node) -> bool:
    """Whether `node` is `start` plus branches: an identity shortcut through additions."""
    return start in upstream(node, lambda n: n is start or op_of(n.target).addition == 1.0)


def _obstacle(joint: _Joint, flow: Flow, root: nn.Module, readers: _Readers) -> str:
    """Return why the branch cannot be dropped, or an empty string."""
    start, branch, _, addition, shortcut = joint
    inside = set(branch)
    if addition.meta.get("opaque"):
        return f"its addition stays as captured: {addition.meta['opaque']}"
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
    for users in readers:
        own = [path for node, path in users.items() if node in inside]
        if own and len(own) < len(users):
            return f"its weights '{own[0]}' are used elsewhere too"
    return ""


def _text(shape: tuple[int | None, ...] | None) -> str:
    return "?" if shape is None else "×".join("N" if s is None else str(s) for s in shape)


def _main_child(path: str, branch: tuple[fx.Node, ...], root: nn.Module) -> str | None:
    """Return the child of `path` that holds most of the branch's parameters."""
    prefix = f"{path}." if path else ""
    size: Counter[str] = Counter()
    for node in branch:
        target = str(node.target)
        if node.op == "call_module" and target.startswith(prefix):
            own = root.get_submodule(target).parameters(recurse=False)
            child = target.removeprefix(prefix).split(".")[0]
            size[prefix + child] += sum(parameter.numel() for parameter in own)
    return max(size, key=size.__getitem__, default=None)
