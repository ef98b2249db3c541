"""Moves: everything that makes a network shallower by one step, what each saves, what it costs.

A move linearizes a site (with the merge that this allows), puts one fitted layer in the place of a
block or stretch, or drops a block. What it saves is measured: on the network with its batch norms
folded, against the same network after the move, in the same interleaved rounds. Moves that change
the same layers at the same sizes save the same, so one of them is measured for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import exp
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, fx

from shoal.errors import NameNotFoundError
from shoal.importance import Scores
from shoal.importance.candidates import Candidate, unchanged
from shoal.importance.replaced import TrialOptions, replacement_scores
from shoal.importance.trials import applied
from shoal.measure import (
    Batches,
    Latency,
    Ratio,
    Runtimes,
    deployments,
    latency_ratio,
    measure_in,
    together,
)
from shoal.measure.ratio import PLACEMENT
from shoal.merge.cut import LayerCosts
from shoal.merge.linear_ops import tensor_shape
from shoal.merge.merge import merge_, trial_merge_
from shoal.modes import device_of
from shoal.network import Network
from shoal.network.inputs import batch_size
from shoal.network.stretches import Stretch
from shoal.passes.batches import Data, observe
from shoal.runtimes import EAGER
from shoal.search.work import Work, WorkModel
from shoal.surgery import FittedLine, LineMoments, drop_, linearize_
from shoal.surgery.collapse import collapsed_layers, fit_stretches, put_collapsed_
from shoal.surgery.fit_conv import FittedLayer
from shoal.tasks import Task

Kind = Literal["linearize", "collapse", "drop"]
KINDS: tuple[Kind, ...] = ("linearize", "collapse", "drop")

POSITIONS = 8192  # of each batch, for the fit of a line
_ROUNDS = 30
_LEAST = 1.005  # whole over variant, below which a move saves nothing that is worth a step
_NOTHING = _LEAST * exp(PLACEMENT)  # an interval that ends below it has no such saving in it


@dataclass(frozen=True)
class Move:
    """One change of a network."""

    kind: Kind
    name: str  # of the site, stretch or block it is done to
    node: fx.Node  # whose value it changes
    source: fx.Node  # that the node is then computed from
    nodes: frozenset[fx.Node]  # all that it replaces; moves with a common one exclude each other
    stretch: Stretch | None = None  # what a collapse replaces

    @property
    def title(self) -> str:
        """Kind and name: one site or block may have several moves."""
        return f"{self.kind} {self.name}"


def find_moves(network: Network, kinds: Collection[str] = KINDS) -> list[Move]:
    """Return the moves that a network allows, in the order of the forward pass."""
    found = [
        Move("linearize", s.name, s.node, s.node.all_input_nodes[0], frozenset([s.node]))
        for s in network.sites
        if "linearize" in kinds and s.linearized is None
    ]
    found += [
        Move("collapse", s.name, s.end, s.start, frozenset(s.nodes), s)
        for s in (network.stretches if "collapse" in kinds else ())
    ]
    found += [
        Move("drop", b.name, b.addition, b.shortcut, frozenset([*b.branch, b.addition]))
        for b in (network.blocks if "drop" in kinds else ())
        if b.removable
    ]
    order = network.view.flow.order
    return sorted(found, key=lambda move: (order[move.node], KINDS.index(move.kind)))


# ---------------------------------------------------------------------- what moves save


def saved_ms(
    network: Network,
    moves: Iterable[Move],
    inputs: Any,
    how: str = "line",
    runtime: Runtimes = EAGER,
    batch: Batches | None = None,
) -> tuple[float, dict[str, float], str]:
    """Measure the network and what each move saves of it, in milliseconds per call.

    Network and moves are measured merged, as they would be used, on batches of `inputs`: in each
    runtime at each `batch` size, by default that of the inputs. A "line" stays a layer where
    nothing next to it can take it up. The network is left as it is.

    No move is made for the noise of its measurement: one that does not certainly save half a
    percent, by the lower end of its 95 % interval, such as a tiny layer's, or whose measurement is
    not to be trusted, saves nothing as long as another one does; where none does, operations and
    MACs decide (`WorkModel`). One that certainly does saves the median: by the lower end of a wide
    interval a step would make several moves where one is enough. Where several runtimes or batch
    sizes decide, each counts alike (`together`), and what is slower in one of them saves nothing.

    Returns:
        The network's median, summed over the runtimes and batch sizes; of that, by the moves'
        titles, the share saved; and, where MACs decided, why in words, else "".
    """
    where = deployments(runtime, batch_size(inputs) if batch is None else batch)
    moves = list(moves)
    folded = network.copy().eval()
    merge_(folded, policy="fold")
    costs = LayerCosts(folded, where)
    models, titles = _variants(folded, moves, how, costs)
    if costs.doubt:
        models, titles = _variants(folded, moves, how, costs)  # all merged by the layers' work
    costs.save()
    saved = dict.fromkeys((move.title for move in moves), 0.0)
    times = measure_in(where, models, inputs, repeats=_ROUNDS, min_seconds=4.0)
    whole_ms = sum(found[""].median_ms for found in times)
    shares, doubt = saved_shares(times, lambda: {n: Work.of(m, inputs) for n, m in models.items()})
    for alike in titles:
        saved |= dict.fromkeys(alike, whole_ms * shares[alike[0]])
    return whole_ms, saved, doubt


def _variants(
    folded: Network, moves: Sequence[Move], how: str, costs: LayerCosts
) -> tuple[dict[str, Network], list[list[str]]]:
    """Return the network, as "", and with one move of each kind, merged; and what moves are alike.

    Each network is there by the title of the first of the moves that make one like it.
    """
    whole = trial_merge_(folded.sharing_copy(), costs)
    before = _content(whole)
    models = {"": whole}
    titles: dict[tuple[Any, ...], list[str]] = {}
    for move in moves:
        variant = folded.sharing_copy()
        try:
            _make(move, variant, how)
        except NameNotFoundError:  # folding took it: a rectifier right after another, say
            continue
        trial_merge_(variant, costs)
        now = _content(variant)
        signature = (tuple(sorted((before - now).items())), tuple(sorted((now - before).items())))
        if signature not in titles:
            models[move.title] = variant
        titles.setdefault(signature, []).append(move.title)
    return models, list(titles.values())


def saved_shares(
    times: Sequence[Mapping[str, Latency]], works: Callable[[], Mapping[str, Work]]
) -> tuple[dict[str, float], str]:
    """Return which share of the latency of "" each other network saves, as `saved_ms` has it.

    The times are those of each deployment. `works` is asked for what the networks do if they do not
    decide; then the second value says why.
    """
    each = {n: [latency_ratio(one[""], one[n]) for one in times] for n in times[0] if n}
    ratios = {name: together(found) for name, found in each.items() if not _slower(found)}
    saved = dict.fromkeys(each, 0.0)
    for name, ratio in ratios.items():
        if ratio.trusted and ratio.low > _LEAST:
            saved[name] = 1.0 - 1.0 / ratio.median
    # What is certain not to save half a percent needs no model
    open_ = [name for name, r in ratios.items() if not r.trusted or r.high > _NOTHING]
    if any(saved.values()) or not open_:
        return saved, ""
    work = works()
    by_work = [_shares_by_work(work, one) for one in times]
    for name in open_:
        share = fmean(shares[name] for shares in by_work)
        saved[name] = share if share > 1.0 - 1.0 / _LEAST else 0.0
    doubts = dict.fromkeys(ratio.doubt for ratio in ratios.values() if ratio.doubt)
    return saved, next(iter(doubts), "no interval leaves out that nothing is saved")


def _slower(ratios: Sequence[Ratio]) -> bool:
    """Whether one of several deployments is slower, by as much as would be worth a step."""
    trusted = (one.median for one in ratios if one.trusted)
    return len(ratios) > 1 and any(median < 1.0 / _LEAST for median in trusted)


def _shares_by_work(works: Mapping[str, Work], times: Mapping[str, Latency]) -> dict[str, float]:
    """Return the shares that are saved by a cost model fitted to the times of one deployment."""
    fastest = [min(times[name].rounds_ms) for name in works]
    model = WorkModel.fit(list(works.values()), fastest)
    whole = model.ms(works[""])
    return {n: 1.0 - model.ms(work) / whole if whole > 0.0 else 0.0 for n, work in works.items()}


def _make(move: Move, network: Network, how: str) -> None:
    """Make a move for measuring: weights that would have to be fitted are random."""
    if move.kind == "drop":
        drop_(network, move.name)
    elif move.kind == "linearize":
        channels = network.site(move.name).channels or 1
        line = FittedLine(torch.full((channels,), 0.5), torch.full((channels,), 0.1), 0.0)
        linearize_(network, move.name, how=how, lines={move.name: line})
    else:
        stretch, like = network.stretch(move.name), _weight(network)
        put_collapsed_(network, stretch, stretch.shape.make(device=like.device, dtype=like.dtype))


def _weight(network: Network) -> Tensor:
    return next(p for p in network.parameters() if p.is_floating_point())


def _content(network: Network) -> Counter[tuple[str, tuple[int | None, ...]]]:
    """Return what a network computes: each node's operation and the shape it gives, counted."""
    found: Counter[tuple[str, tuple[int | None, ...]]] = Counter()
    for node in network.graph.nodes:
        if node.op == "call_module":
            found[repr(network.get_submodule(str(node.target))), tensor_shape(node)] += 1
        elif node.op == "call_function":
            found[str(node.target), tensor_shape(node)] += 1
    return found


# ---------------------------------------------------------------------- what moves cost


@dataclass(frozen=True)
class Fitted:
    """What moves put in: a line for each site, a layer for each stretch with data enough."""

    network: Network
    how: str
    lines: Mapping[str, FittedLine]
    layers: Mapping[str, FittedLayer]

    def allows(self, move: Move) -> bool:
        """Whether there were data enough to fit what the move puts in."""
        return move.stretch is None or move.name in self.layers

    def make(self, move: Move, target: Network) -> None:
        """Make the move on a network like the one that was fitted."""
        if move.kind == "drop":
            drop_(target, move.name)
        elif move.kind == "linearize":
            linearize_(target, move.name, how=self.how, lines=self.lines)
        else:
            stretch = target.stretch(move.name)
            layers = collapsed_layers(target, stretch, self.layers[move.name])
            put_collapsed_(target, stretch, *layers)

    def compute(self, move: Move) -> Callable[[Tensor], Tensor]:
        """Return what gives the value of the move's node from that of its source."""
        if move.kind == "collapse":
            return partial(applied, self.layers[move.name].layer(_weight(self.network)))
        if move.kind == "drop" or self.how == "identity":
            return unchanged
        site = self.network.site(move.name)
        like = torch.empty(0, device=device_of(self.network))
        return partial(applied, self.lines[move.name].layer(like, site.channel_dim))


def fit_moves(
    network: Network, moves: Sequence[Move], data: Iterable[Any], *, how: str, samples: int | None
) -> Fitted:
    """Fit lines and layers to data; stretches with too few samples are left out."""
    lines: Mapping[str, FittedLine] = {}
    sites = [move.name for move in moves if move.kind == "linearize"]
    if sites and how == "line":
        moments = LineMoments(sites, positions=POSITIONS)
        observe(network, data, [moments], samples=samples)
        lines = moments.lines()
    stretches = [move.stretch for move in moves if move.stretch is not None]
    layers = fit_stretches(network, stretches, data, samples=samples, leave_out=True)
    return Fitted(network, how, lines, layers)


def predicted_costs(
    fitted: Fitted,
    moves: Sequence[Move],
    saved: Mapping[str, float],
    data: Data,
    *,
    metric: str,
    keep: int,
    task: Task | None = None,
) -> Scores:
    """Score moves by predicted cost per millisecond saved, the best `keep` of each kind well.

    A move's cost is what the network loses on data where it is made and nothing is trained. A cost
    below its own standard error (as an estimate for other data) cannot be told from it: the error
    stands for it, so that among moves that cost nothing the saving decides.
    """
    candidates = [
        Candidate(
            move.title,
            move.node,
            move.source,
            fitted.compute(move),
            weight=1.0 / saved[move.title],
            group=move.kind,
        )
        for move in moves
    ]
    how = TrialOptions(metric=metric, keep=keep)
    found = replacement_scores("shoal", fitted.network, candidates, data, how, task)
    details = {
        move.title: {
            **found.details[move.title],
            "kind": move.kind,
            "cost": found[move.title],
            "saved_ms": saved[move.title],
        }
        for move in moves
    }
    costs = {t: max(cost, details[t]["cost_standard_error"]) for t, cost in found.items()}
    return replace(
        found,
        by_name={title: cost / saved[title] for title, cost in costs.items()},
        standard_errors={t: e / saved[t] for t, e in found.standard_errors.items()},
        settled=None,
        details=details,
    )
