"""Moves: everything that makes a network shallower by one step, and the time each would save.

A move linearizes a site (with the merge that this allows), puts one fitted layer in the place of a
block or stretch, or drops a block. What it saves is measured: on the network with its batch norms
folded, against the same network after the move, in the same interleaved rounds. Moves that change
the same layers at the same sizes save the same, so one of them is measured for all.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

from shoal.errors import NameNotFoundError
from shoal.measure import Ratio, latency_in
from shoal.merge.linear_ops import tensor_shape
from shoal.merge.merge import merge_
from shoal.merge.trial import trial_merge_
from shoal.network import Network
from shoal.network.stretches import Stretch
from shoal.runtimes import EAGER
from shoal.surgery import FittedLine, drop_, linearize_
from shoal.surgery.collapse import put_collapsed_

__all__ = ["KINDS", "Move", "find_moves", "saved_ms"]

Kind = Literal["linearize", "collapse", "drop"]
KINDS: tuple[Kind, ...] = ("linearize", "collapse", "drop")

_ROUNDS = 30
_LEAST = 1.005  # whole over variant, below which a move saves nothing


@dataclass(frozen=True)
class Move:
    """One change of a network.

    Attributes:
        kind: what is done.
        name: of the site, stretch or block it is done to.
        node: the node whose value it changes.
        source: the node it then is computed from.
        nodes: all nodes that it replaces; two moves with a common one exclude each other.
        stretch: what a collapse replaces.
    """

    kind: Kind
    name: str
    node: fx.Node
    source: fx.Node
    nodes: frozenset[fx.Node]
    stretch: Stretch | None = None

    @property
    def title(self) -> str:
        """Kind and name: one site or block may have several moves."""
        return f"{self.kind} {self.name}"


def find_moves(network: Network, kinds: Collection[str] = KINDS) -> list[Move]:
    """Return the moves that a network allows, in the order of the forward pass."""
    found: list[Move] = []
    if "linearize" in kinds:
        for site in network.sites:
            if site.linearized is None:
                source, nodes = site.node.all_input_nodes[0], frozenset([site.node])
                found.append(Move("linearize", site.name, site.node, source, nodes))
    if "collapse" in kinds:
        found += [
            Move("collapse", s.name, s.end, s.start, frozenset(s.nodes), s)
            for s in network.stretches
        ]
    if "drop" in kinds:
        for b in network.blocks:
            if b.removable:
                nodes = frozenset([*b.branch, b.addition])
                found.append(Move("drop", b.name, b.addition, b.shortcut, nodes))
    order = network.view.order
    return sorted(found, key=lambda move: (order[move.node], KINDS.index(move.kind)))


def saved_ms(
    network: Network,
    moves: Iterable[Move],
    inputs: Any,
    how: str = "line",
    runtime: str = EAGER,
) -> tuple[float, dict[str, float]]:
    """Measure the network and what each move saves of it, in milliseconds per call.

    Network and moves are measured merged, as they would be used. The network is left as it is.

    Args:
        network: the captured network.
        moves: of this network.
        inputs: one batch: a tuple of tensors, or a dict of keyword inputs.
        how: what linearizing puts in: "line", which stays a layer where nothing next to it can
            take it up, or "identity".
        runtime: where it is measured, "eager" or "onnxruntime".

    Returns:
        The network's median, and by the moves' titles the share of the time saved, as the median
        over rounds, of it; 0 where that is below half a percent, which is not worth a step and
        hard to tell from nothing.
    """
    batch = len(next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs)))
    moves = list(moves)
    folded = network.copy().eval()
    merge_(folded, policy="fold", batch=batch)
    whole = trial_merge_(_shallow_copy(folded), batch=batch, runtime=runtime)
    before = _content(whole)
    signatures: dict[str, tuple[Any, ...]] = {}
    variants: dict[tuple[Any, ...], Network] = {}
    for move in moves:
        variant = _shallow_copy(folded)
        try:
            _make(move, variant, how)
        except NameNotFoundError:  # folding took it: a rectifier right after another, say
            continue
        trial_merge_(variant, batch=batch, runtime=runtime)
        now = _content(variant)
        signature = (tuple(sorted((before - now).items())), tuple(sorted((now - before).items())))
        signatures[move.title] = signature
        variants.setdefault(signature, variant)
    names = {signature: str(number) for number, signature in enumerate(variants)}
    models = {"": whole, **{names[signature]: v for signature, v in variants.items()}}
    times = latency_in(runtime, models, inputs, repeats=_ROUNDS, min_seconds=4.0)
    rounds, whole_ms = times[""].rounds_ms, times[""].median_ms
    found = {}
    for signature, name in names.items():
        ratio = Ratio.of(rounds, times[name].rounds_ms)
        saved = whole_ms * (1.0 - 1.0 / ratio.median)
        found[signature] = saved if ratio.median > _LEAST else 0.0
    return whole_ms, {
        move.title: found[signatures[move.title]] if move.title in signatures else 0.0
        for move in moves
    }


def _shallow_copy(network: Network) -> Network:
    """Return a copy that shares all weights."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _make(move: Move, network: Network, how: str) -> None:
    """Make a move for measuring: weights that would have to be fitted are random."""
    if move.kind == "drop":
        drop_(network, move.name)
    elif move.kind == "linearize":
        channels = network.site(move.name).channels or 1
        line = FittedLine(torch.full((channels,), 0.5), torch.full((channels,), 0.1), 0.0)
        linearize_(network, move.name, how=how, lines={move.name: line})
    else:
        stretch = network.stretch(move.name)
        like = next(p for p in network.parameters() if p.is_floating_point())
        layer = stretch.shape.make(device=like.device, dtype=like.dtype)
        put_collapsed_(network, stretch, layer)


def _content(network: Network) -> Counter[tuple[str, tuple[int | None, ...]]]:
    """Return what a network computes: each node's operation and the shape it gives, counted."""
    found: Counter[tuple[str, tuple[int | None, ...]]] = Counter()
    for node in network.graph.nodes:
        if node.op == "call_module":
            what = repr(network.get_submodule(str(node.target)))
        elif node.op == "call_function":
            what = str(node.target)
        else:
            continue
        found[what, tensor_shape(node)] += 1
    return found
