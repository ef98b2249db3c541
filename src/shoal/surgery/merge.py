"""Merge: replace regions by layers composed from them, where that is exact and not slower."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from shoal.data.batch import split_batch
from shoal.errors import ConfigError, PlanError
from shoal.measure import compare_outputs, count_macs, depth, measure_latency
from shoal.modes import device_of
from shoal.network import Network, Operation
from shoal.network.blocks import is_weighted
from shoal.network.modules import Line
from shoal.surgery.cleanup import remove_dead_, used_paths
from shoal.surgery.convmap import ConvMap
from shoal.surgery.costs import LatencyCosts
from shoal.surgery.layer_spec import layer_from_spec, layer_spec
from shoal.surgery.linear_ops import tensor_shape
from shoal.surgery.peephole import simplify_
from shoal.surgery.regions import find_regions
from shoal.surgery.replay import replayers
from shoal.surgery.report import Kept, Merged, MergeReport
from shoal.surgery.rewrite import between, free_path, is_closed, replace_stretch_
from shoal.surgery.segments import Prices, Segment, best_cut

__all__ = ["merge_"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
_SLOWER = 1.02  # a merged network may be measured so much slower before it is undone


def merge_(
    network: Network,
    loader: Iterable[Any] | None = None,
    *,
    policy: str = "measured",
    batch: int = 1,
) -> MergeReport:
    """Merge what is linear into fewer layers, in place, and prove that nothing changed.

    Batch norms and lines are folded into their neighbours. Runs of linear layers, skips included,
    become one layer where that is exact and, under "measured", where the one layer is faster on
    this machine. In eval mode the network computes what it computed before; train it before, since
    its batch norms are gone afterwards. Merging again changes nothing.

    Outputs are compared before and after, in the network's own type and in float64; what differs
    by more than a relative 1e-5 in float32 or 1e-10 in float64 is undone.

    Args:
        network: a captured network.
        loader: real inputs for the comparison, besides random ones.
        policy: "measured" merges what is measured to be faster; "always" merges whatever is
            exact; "fold" folds scales and shifts only.
        batch: batch size at which latency decides.

    Returns:
        What was merged and what was kept, with reasons, errors, MACs and latencies.

    Raises:
        ConfigError: the policy does not exist, or the batch is below 1.
        DataError: the loader's batches have no inputs.
    """
    if policy not in ("measured", "always", "fold"):
        raise ConfigError(f"policy is '{policy}': choose 'measured', 'always' or 'fold'")
    if batch < 1:
        raise ConfigError(f"batch is {batch}: give at least 1")
    return _Merger(network, _inputs(network, loader), policy, batch).run()


@dataclass
class _Attempt:
    """A merged copy of a network, and what was done to it."""

    network: Network
    merged: list[Merged] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    boundaries: list[dict[str, str]] = field(default_factory=list)
    cuts: list[dict[str, Any]] = field(default_factory=list)
    reshaped: bool = False  # whether lines were given the rank of what they read
    joined: bool = False  # whether more than scales and shifts was folded
    error: float = math.inf
    error_float64: float | None = None


class _Merger:
    def __init__(self, network: Network, inputs: list[Any], policy: str, batch: int) -> None:
        self.network = network
        self.inputs = inputs
        self.batch = batch
        types = {p.dtype for p in network.parameters() if p.dtype.is_floating_point}
        self.dtype = types.pop() if len(types) == 1 else None
        self.base = self._in_float64()
        self.policy = policy
        dtype = self.dtype or torch.float32
        self.costs = LatencyCosts(batch, device_of(network), dtype)

    def run(self) -> MergeReport:
        attempt = self._verified(self.policy)
        before_ms = after_ms = None
        if self.policy == "measured" and attempt.joined:
            folded = self._verified("fold")
            before_ms, after_ms, ratio = self._latencies(folded.network, attempt.network)
            if ratio > _SLOWER:
                reason = "the whole network was measured to be slower with it"
                joined = [m for m in attempt.merged if m.weighted_before > 1]
                folded.kept += [Kept(m.layers, reason) for m in joined]
                attempt, after_ms = folded, before_ms
        self.costs.save()
        example = self.inputs[0]
        report = MergeReport(
            merged=attempt.merged,
            kept=attempt.kept,
            boundaries=attempt.boundaries,
            max_rel_error=attempt.error,
            max_rel_error_float64=attempt.error_float64,
            checked_inputs=len(self.inputs),
            macs_before=count_macs(self.network, example).total,
            macs_after=count_macs(attempt.network, example).total,
            depth_before=depth(self.network),
            depth_after=depth(attempt.network),
            latency_before_ms=before_ms,
            latency_after_ms=after_ms,
            batch=self.batch,
        )
        if attempt.cuts or attempt.reshaped or attempt.network.code != self.network.code:
            self._adopt(attempt)
        return report

    def _adopt(self, attempt: _Attempt) -> None:
        """Make the network what the attempt is."""
        training = self.network.training
        plan = self.network.plan
        state = attempt.network.__getstate__()
        self.network.__dict__.clear()
        self.network.__setstate__(state)
        self.network._keep(plan=plan)
        plan.record("merge", (), cuts=attempt.cuts)
        self.network.train(training)

    # ------------------------------------------------------------------ verifying

    def _in_float64(self) -> Network:
        """Return a copy to work on: in float64 where the network can run so, else as it is."""
        copy = self.network.copy().eval()
        if self.dtype in (None, torch.float64):
            return copy
        copy.double()
        try:
            with torch.no_grad():
                _call(copy, _cast(self.inputs[-1], torch.float64))
        except RuntimeError:
            return self.network.copy().eval()
        return copy

    def _verified(self, policy: str) -> _Attempt:
        """Return an attempt that computes what the network computes, leaving out what does not."""
        attempt = self._attempt(policy, skip=frozenset())
        if self._agrees(attempt):
            return attempt
        skip: set[str] = set()
        for region in attempt.boundaries:
            alone = {r["region"] for r in attempt.boundaries} - {region["region"]} - skip
            if not self._agrees(self._attempt(policy, skip=frozenset(alone | skip))):
                skip.add(region["region"])
        attempt = self._attempt(policy, skip=frozenset(skip))
        if self._agrees(attempt):
            reason = "merged, it changed the output by more than rounding"
            attempt.kept += [Kept((name,), reason) for name in sorted(skip)]
            return attempt
        undone = _Attempt(self.network.copy().eval(), boundaries=attempt.boundaries)
        undone.kept = [Kept(m.layers, "merged, it changed the output") for m in attempt.merged]
        undone.error = 0.0
        return undone

    def _agrees(self, attempt: _Attempt) -> bool:
        """Compare an attempt's outputs with the network's; brings it to the network's type."""
        merged = attempt.network
        exact = next((p.dtype for p in self.base.parameters()), None)
        if exact == torch.float64:
            inputs = [_cast(given, torch.float64) for given in self.inputs]
            attempt.error_float64 = compare_outputs(self.base, merged, inputs).max_rel_error
            if attempt.error_float64 > _TOLERANCE[torch.float64]:
                return False
        if self.dtype is not None:
            merged.to(self.dtype)
        attempt.error = compare_outputs(self.network, merged, self.inputs).max_rel_error
        return attempt.error <= _TOLERANCE.get(self.dtype or torch.float32, 1e-5)

    def _latencies(self, folded: Network, merged: Network) -> tuple[float, float, float]:
        inputs = _resized(self.inputs[-1], self.batch)
        timing = measure_latency({"folded": folded, "merged": merged}, inputs, min_seconds=0.3)
        before, after = timing["folded"].median_ms, timing["merged"].median_ms
        ratios = [
            b / a
            for a, b in zip(timing["folded"].rounds_ms, timing["merged"].rounds_ms, strict=True)
        ]
        return before, after, sorted(ratios)[len(ratios) // 2]

    # ------------------------------------------------------------------ merging

    def _prices(self, policy: str) -> Prices:
        if policy == "measured":
            return Prices(self._latency)
        # As few layers as can be; a scale and shift counts a little, so that it is folded.
        return Prices(_count_layers, joins=policy == "always", most_work=math.inf, margin=1.0)

    def _latency(self, found: ConvMap, node: fx.Node) -> float:
        like = torch.empty(0, dtype=self.dtype or torch.float32, device=device_of(self.network))
        layers = found.layers(like)
        shape = tensor_shape(node)
        if found.spatial and len(shape) == 2:  # after a flattening: one position
            shape = (*shape, *[1] * found.spatial)
        return self.costs.sequence_ms(layers, shape)

    def _attempt(self, policy: str, skip: frozenset[str]) -> _Attempt:
        work = self.base.copy()
        attempt = _Attempt(work)
        used = used_paths(work.graph.nodes)
        simplify_(work)
        prices = self._prices(policy)
        applier = _Applier(work, attempt, timed=policy == "measured")
        for region in find_regions(work):
            name = region.end.name
            attempt.boundaries.append(
                {"region": name, "begins": region.begins_because, "ends": region.ends_because}
            )
            if name not in skip:
                applier.apply(best_cut(region.chain, prices))
        remove_dead_(work, used)
        attempt.reshaped = _fix_lines(work)
        return attempt


def _count_layers(found: ConvMap, node: fx.Node) -> float:
    return 0.0 if found.is_identity else 0.1 if found.is_affine else 1.0 + 0.01 * found.ones


# ---------------------------------------------------------------------- applying a cut


class _Applier:
    """Puts the chosen segments into a network's graph and writes down what it did."""

    def __init__(self, network: Network, attempt: _Attempt, timed: bool) -> None:
        self.network = network
        self.attempt = attempt
        self.timed = timed  # whether a segment's cost is in milliseconds
        self.now: dict[fx.Node, fx.Node] = {}  # who gives a tensor that was replaced

    def apply(self, segments: Sequence[Segment]) -> None:
        """Apply the segments of a region or of a branch."""
        for segment in segments:
            if segment.map is None and segment.branches:
                for branch in segment.branches:
                    self.apply(branch)
            if segment.changed and not (segment.map is None and segment.branches):
                self._replace(segment)
            self._note_kept(segment)

    def _note_kept(self, segment: Segment) -> None:
        if segment.reason and segment.layers:
            layers = _weighted_names(segment, self.network)
            self.attempt.kept.append(Kept(layers, segment.reason))

    def _replace(self, segment: Segment) -> None:
        start = self.now.get(segment.start, segment.start)
        end = self.now.get(segment.end, segment.end)
        if not is_closed(start, end):
            kept = _weighted_names(segment, self.network)
            self.attempt.kept.append(Kept(kept, "a tensor inside is needed elsewhere"))
            return
        merged = self._describe(segment, start, end)
        flatten = _flattening(start, end)
        layers = self._layers(segment, merged.name, flatten, start)
        specs = [[path, layer_spec(module)] for path, module in layers]
        cut = {"start": start.name, "end": end.name, "layers": specs, "flatten": flatten}
        self.attempt.cuts.append(cut)
        self.attempt.merged.append(merged)
        self.attempt.joined |= segment.layers > 1
        if not layers and not flatten:
            end.replace_all_uses_with(start)
            self.now[segment.end] = start
        else:
            node = replace_stretch_(self.network, start, end, layers, flatten=flatten)
            self.now[segment.end] = node

    def _layers(
        self, segment: Segment, path: str, flatten: str | None, start: fx.Node
    ) -> list[tuple[str, nn.Module]]:
        """Return the new layers with their paths; none where the segment does nothing."""
        found = segment.map
        if found is None or found.is_identity:
            return []
        if found.spatial and (flatten == "before" or len(tensor_shape(start)) == 2):
            found = _without_positions(found)
        like = next((p for p in self.network.parameters()), torch.empty(0))
        *helpers, layer = found.layers(like.detach())
        ones = [(free_path(self.network, f"{path}_ones"), module) for module in helpers]
        return [*ones, (path, layer)]

    def _describe(self, segment: Segment, start: fx.Node, end: fx.Node) -> Merged:
        order = list(self.network.graph.nodes).index
        inside = sorted(between(start, end), key=order)
        weighted = [node for node in inside if is_weighted(node, self.network)]
        found = None if segment.map is None or segment.map.is_identity else segment.map
        return Merged(
            name=self._path(inside, weighted, end),
            layers=tuple(str(node.target) for node in inside if node.op == "call_module"),
            before=" + ".join(self._words(node) for node in inside),
            after="nothing" if found is None else found.describe(),
            weighted_before=len(weighted),
            macs_before=sum(_macs(self.network, node) for node in weighted),
            macs_after=0 if found is None else _map_macs(found, end),
            latency_before_ms=segment.cost_apart if self.timed else None,
            latency_after_ms=segment.cost if self.timed else None,
        )

    def _path(self, inside: list[fx.Node], weighted: list[fx.Node], end: fx.Node) -> str:
        """Return the path for the new layer: the last weighted layer's, if nobody else calls it."""
        called = [node for node in weighted or inside if node.op == "call_module"]
        for node in reversed(called):
            path = str(node.target)
            calls = [n for n in self.network.graph.nodes if n.target == path]
            if set(calls) <= set(inside):
                return path
        base = str(called[-1].target) if called else f"{end.meta.get('path', '')}.merged"
        return free_path(self.network, base.lstrip("."))

    def _words(self, node: fx.Node) -> str:
        if node.op != "call_module":
            return str(node.target).removeprefix("aten.").split(".")[0]
        module = self.network.get_submodule(str(node.target))
        kernel = getattr(module, "kernel_size", None)
        name = type(module).__name__
        return f"{name} {'×'.join(map(str, kernel))}" if isinstance(kernel, tuple) else name


def _fix_lines(network: Network) -> bool:
    """Shape the lines that are left for the tensors they read; returns whether one was not."""
    before = {name: value.shape for name, value in network.state_dict().items()}
    for node in network.graph.nodes:
        if node.op == "call_module":
            module = network.get_submodule(str(node.target))
            if isinstance(module, Line):
                module.fix_rank(len(tensor_shape(node)))
    return before != {name: value.shape for name, value in network.state_dict().items()}


def _weighted_names(segment: Segment, network: Network) -> tuple[str, ...]:
    nodes = between(segment.start, segment.end)
    ordered = [node for node in network.graph.nodes if node in nodes]
    return tuple(str(n.target) for n in ordered if is_weighted(n, network)) or (segment.end.name,)


def _flattening(start: fx.Node, end: fx.Node) -> str | None:
    """Return where a flattening inside a segment goes: before layers that see one position."""
    shape = tensor_shape(start)
    if len(shape) == 2 or len(tensor_shape(end)) != 2:
        return None
    return "before" if all(n == 1 for n in shape[2:]) else "after"


def _without_positions(found: ConvMap) -> ConvMap:
    """Return a convolution over one position as a linear layer."""
    return ConvMap(found.weight.flatten(2)[:, :, 0], found.bias, (), (), (), found.groups)


def _positions(node: fx.Node, channels_last: bool) -> int:
    shape = tensor_shape(node)
    sizes = shape[1:-1] if channels_last else shape[2:]
    return math.prod(n for n in sizes if n is not None)


def _macs(network: Network, node: fx.Node) -> int:
    if node.op != "call_module":
        return 0
    weight = network.get_submodule(str(node.target)).weight
    assert isinstance(weight, torch.Tensor)
    return weight.numel() * _positions(node, channels_last=weight.dim() == 2)


def _map_macs(found: ConvMap, end: fx.Node) -> int:
    if found.is_affine:
        return 0
    return found.weight.numel() * _positions(end, channels_last=found.spatial == 0)


# ---------------------------------------------------------------------- inputs


def _inputs(network: Network, loader: Iterable[Any] | None) -> list[Any]:
    """Return what outputs are compared on: a real batch if there is one, and random ones."""
    given: list[Any] = []
    if loader is not None:
        plain = getattr(loader, "plain", None)
        first = next(iter(plain() if callable(plain) else loader), None)
        if first is not None:
            real = split_batch(first, device_of(network))
            given.append(_as_one(network, tuple(x[:8] for x in real.args),
                                 {k: v[:8] for k, v in real.kwargs.items()}))  # fmt: skip
    for seed, batch in ((0, 2), (1, 3)):
        given.append(_as_one(network, *network.example_inputs(batch=batch, seed=seed)))
    return given


def _as_one(network: Network, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a call's inputs as a tuple, or as a mapping if some go by keyword."""
    if not kwargs:
        return args
    return {**dict(zip(network._inputs.parameters, args, strict=False)), **kwargs}


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    def cast(value: Any) -> Any:
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    if isinstance(inputs, dict):
        return {name: cast(value) for name, value in inputs.items()}
    return tuple(cast(value) for value in inputs)


def _resized(inputs: Any, batch: int) -> Any:
    def take(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dim() == 0:
            return value
        times = -(-batch // len(value))
        return value.repeat(times, *[1] * (value.dim() - 1))[:batch]

    if isinstance(inputs, dict):
        return {name: take(value) for name, value in inputs.items()}
    return tuple(take(value) for value in inputs)


def _call(network: Network, inputs: Any) -> Any:
    return network(**inputs) if isinstance(inputs, dict) else network(*inputs)


# ---------------------------------------------------------------------- replaying


@replayers.register("merge")
def _replay(network: Network, operation: Operation) -> None:
    used = used_paths(network.graph.nodes)
    simplify_(network)
    for cut in operation.options.get("cuts", []):
        nodes = {node.name: node for node in network.graph.nodes}
        try:
            start, end = nodes[cut["start"]], nodes[cut["end"]]
            layers = [(path, layer_from_spec(spec)) for path, spec in cut["layers"]]
            flatten = cut["flatten"]
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan merges what this network does not have: {error}") from error
        if layers or flatten:
            replace_stretch_(network, start, end, layers, flatten=flatten)
        else:
            end.replace_all_uses_with(start)
    remove_dead_(network, used)
    _fix_lines(network)
