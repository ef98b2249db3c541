"""Merge: replace regions by layers composed from them, where that is exact and not slower."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import fx

from shoal.data.batch import split_batch
from shoal.errors import ConfigError, OptionError
from shoal.measure import (
    Batches,
    Deployment,
    Ratio,
    Runtimes,
    count_macs,
    deployments,
    depth,
    latency_ratio,
    measure_in,
)
from shoal.merge.build import FOLD_ONLY, Attempt, Builder
from shoal.merge.conv_map import ConvMap
from shoal.merge.cut import LayerCosts, Prices
from shoal.merge.peephole import fix_lines, simplify_
from shoal.merge.regions import find_regions
from shoal.merge.report import Kept, MergeReport
from shoal.merge.units import weighted
from shoal.merge.weights import fix_weights_
from shoal.modes import device_of, dtype_of, is_channels_last, make_channels_last
from shoal.network import Network
from shoal.network.agreement import compare_outputs
from shoal.network.inputs import as_call, as_inputs, map_tensors
from shoal.network.rewrite import remove_dead_, used_paths
from shoal.passes.batches import plain
from shoal.runtimes import EAGER

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}
_SLOWER = 1.02  # a merge that makes the whole network slower than this is undone


def merge_(
    network: Network,
    loader: Iterable[Any] | None = None,
    *,
    policy: str = "measured",
    batch: Batches = 1,
    runtime: Runtimes = EAGER,
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
        batch: batch size at which latency decides, or several.
        runtime: where it is measured: "eager" is PyTorch, "onnxruntime" the exported network, …; or
            several, as a list or with commas between them. What is merged must pay in the sum over
            all runtimes and batch sizes, each by its share of the network's latency there, and be
            slower in none.

    Returns:
        What was merged and what was kept, with reasons, errors, MACs and latencies.

    Raises:
        ConfigError: the policy or runtime does not exist, or the batch is below 1.
        ShoalError: the runtime is not installed, or the network cannot be exported for it.
        DataError: the loader's batches have no inputs.

    Example:
        >>> import shoal, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = shoal.capture(model.eval(), torch.randn(2, 4))

        >>> operations = shoal.linearize_(net, ["1"], how="identity")
        >>> report = shoal.merge_(net, policy="always")
        >>> report.depth_before, report.depth_after, report.max_rel_error < 1e-5
        (2, 1, True)
    """
    if policy not in ("measured", "always", "fold"):
        raise OptionError("policy", policy, "'measured', 'always' or 'fold'")
    where = deployments(runtime, batch)
    return _Merger(network, _sample_inputs(network, loader), policy, where).run()


@dataclass
class _Merger:
    network: Network
    inputs: list[Any]
    policy: str
    where: tuple[Deployment, ...]

    def __post_init__(self) -> None:
        self.verifier = _Verifier(self.network, self.inputs)
        self.costs = LayerCosts(self.network, self.where)
        self.runtime = ",".join(dict.fromkeys(one.name for one in self.where))
        batches = tuple(dict.fromkeys(one.batch for one in self.where))
        self.batch = batches if len(batches) > 1 else batches[0]

    def run(self) -> MergeReport:
        attempt, slower = self._verified(self.policy), False
        if self.costs.doubt:
            attempt = self._verified(self.policy)  # now by the layers' work
        doubt, before_ms, after_ms = "", None, None
        if self.policy == "measured" and attempt.joined:
            folded, slower = self._verified("fold"), self._was_slower()
            if not slower:
                before_ms, after_ms, ratio = self._latencies(folded.network, attempt.network)
                # Where the clock is not to be trusted, the layers' own costs have decided.
                slower, doubt = ratio.trusted and ratio.median > _SLOWER, ratio.doubt
            if slower:
                reason = "the whole network was measured to be slower with it"
                joined = [m for m in attempt.merged if m.weighted_before > 1]
                folded.kept = [k for k in folded.kept if k.reason != FOLD_ONLY]
                folded.kept += [Kept(m.layers, reason, m.region) for m in joined]
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
            runtime=self.runtime,
            latency_doubt=doubt,
            layers_doubt=self.costs.doubt,
        )
        self._adopt(attempt, slower)
        return report

    def _was_slower(self) -> bool:
        """Whether all that was done last is a merge that was measured here, and undone."""
        done = self.network.plan.operations
        return bool(done) and done[-1].options.get("slower") == self._deployed

    @property
    def _deployed(self) -> list[Any]:
        """The runtimes and batch sizes as JSON values."""
        batch = self.batch
        return [self.runtime, list(batch) if isinstance(batch, tuple) else batch]

    def _adopt(self, attempt: Attempt, slower: bool) -> None:
        """Make the network what the attempt is; record it, and where joining was slower."""
        training = self.network.training
        changed = attempt.merged or attempt.reshaped or attempt.network.code != self.network.code
        if changed:
            # Some may be set otherwise than the network, as frozen norms are.
            before = self.network.named_modules(remove_duplicate=False)
            flags = {path: module.training for path, module in before}
            self.network.become(attempt.network)
            for path, module in self.network.named_modules(remove_duplicate=False):
                module.training = flags.get(path, training)
        if changed or (slower and not self._was_slower()):
            layers = {item.name: list(item.layers) for item in attempt.merged}
            options = {"slower": self._deployed} if slower else {}
            self.network.plan.record("merge", (), layers=layers, **options)

    def _verified(self, policy: str) -> Attempt:
        """Return an attempt that computes what the network computes, leaving out what does not."""
        attempt = self._attempt(policy)
        if self.verifier.agrees(attempt):
            return attempt
        skip: set[str] = set()
        regions = {found.region for found in attempt.boundaries}
        for found in attempt.boundaries:
            if not self.verifier.agrees(self._attempt(policy, regions - {found.region} | skip)):
                skip.add(found.region)
        attempt = self._attempt(policy, skip)
        if self.verifier.agrees(attempt):
            reason = "merging it changed the output by more than rounding"
            undone = [found for found in attempt.boundaries if found.region in skip]
            attempt.kept += [Kept(found.layers, reason, found.region) for found in undone]
            return attempt
        nothing = Attempt(self.network.copy().eval(), boundaries=attempt.boundaries, error=0.0)
        reason = "merging changed the output"
        nothing.kept = [Kept(found.layers, reason, found.region) for found in attempt.boundaries]
        return nothing

    def _latencies(self, folded: Network, merged: Network) -> tuple[float, float, Ratio]:
        """Return the latencies of both, summed over the deployments, and the worst of the ratios.

        Of ratios that are trusted, if there are any: one that is slower there is slower.
        """
        networks = {"folded": folded, "merged": merged}
        timed = measure_in(self.where, networks, self.inputs[-1], min_seconds=0.3)
        before, after = (sum(one[name].median_ms for one in timed) for name in networks)
        ratios = [latency_ratio(one["merged"], one["folded"]) for one in timed]
        return before, after, max(ratios, key=lambda ratio: (ratio.trusted, ratio.median))

    # ------------------------------------------------------------------ merging

    def _prices(self, policy: str) -> Prices:
        if policy == "measured":
            return self.costs.prices()
        # As few layers as can be; a scale and shift counts a little, so that it is folded.
        joins = policy == "always"
        return Prices(_count_layers, joins=joins, most_work=math.inf, margin=1.0, in_ms=False)

    def _attempt(self, policy: str, skip: Collection[str] = ()) -> Attempt:
        """Return a merged copy, in which another merge finds nothing to do."""
        work = self.verifier.base.copy()
        attempt = Attempt(work)
        prices = self._prices(policy)
        fix_weights_(work)
        used = used_paths(work.graph.nodes)
        for again in itertools.count():
            # What was composed before a mean may then come after it, and meet the layers there.
            simplify_(work, pool_first=policy != "fold")
            used |= used_paths(work.graph.nodes)
            builder = Builder(work, prices)
            for region in find_regions(work):
                builder.build(region, leave=region.end.name in skip)
            if builder.done.merged or not again:
                attempt.take(builder.done)
            used |= used_paths(work.graph.nodes)
            remove_dead_(work, used)
            if not builder.done.merged:
                break
        attempt.reshaped = fix_lines(work)
        if is_channels_last(self.network):
            make_channels_last(work)  # the composed layers too
        return attempt


def _count_layers(found: ConvMap, node: fx.Node) -> float:
    return 0.0 if found.is_identity else 0.1 if found.is_affine else 1.0 + 0.01 * found.ones


def trial_merge_(network: Network, costs: LayerCosts) -> Network:
    """Merge, in place, the layers of a network whose scales and shifts are folded, to measure it.

    Regions are cut as `merge_` cuts them under "measured"; nothing is compared or recorded.
    """
    fix_weights_(network)
    used = used_paths(network.graph.nodes)
    simplify_(network, pool_first=True)
    builder = Builder(network, costs.prices())
    for region in find_regions(network):
        if weighted(region.chain) > 1:
            builder.build(region)
    remove_dead_(network, used)
    fix_lines(network)
    return network


# ---------------------------------------------------------------------- the proof


def _sample_inputs(network: Network, loader: Iterable[Any] | None) -> list[Any]:
    """Return what outputs are compared on: a real batch if there is one, and random ones."""
    device, calls = device_of(network), []
    for raw in islice(plain(loader), 1) if loader is not None else ():
        real = split_batch(raw).first(8).to(device)
        calls.append((real.args, real.kwargs))
    calls += [network.example_inputs(batch=batch, seed=seed) for seed, batch in ((0, 2), (1, 3))]
    return [as_inputs(call, network.inputs.parameters) for call in calls]


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t, inputs)


class _Verifier:
    """Compares merged copies of a network with it, on `inputs`."""

    def __init__(self, network: Network, inputs: list[Any]) -> None:
        self.network = network
        self.inputs = inputs
        self.dtype = dtype_of(network)
        self.base = self._in_float64()  # a copy to merge; as it is where it cannot run so

    def _in_float64(self) -> Network:
        copy = self.network.copy().eval()
        if self.dtype in (None, torch.float64):
            return copy
        try:
            copy.double()
            args, kwargs = as_call(_cast(self.inputs[-1], torch.float64))
            with torch.no_grad():
                copy(*args, **kwargs)
        except (RuntimeError, TypeError):  # some devices have no float64
            return self.network.copy().eval()
        return copy

    def _keep_buffer_types(self, merged: Network) -> None:
        """Give the buffers that are left the network's own types again, which may be others."""
        before = dict(self.network.named_buffers(remove_duplicate=False))
        for path, module in merged.named_modules(remove_duplicate=False):
            for name, held in module.named_buffers(path, recurse=False, remove_duplicate=False):
                own = before.get(name, held)
                if held.dtype != own.dtype:
                    module._buffers[name.rpartition(".")[2]] = own.detach().clone()

    def agrees(self, attempt: Attempt) -> bool:
        """Compare an attempt's outputs with the network's; brings it to the network's type."""
        merged, dtype = attempt.network, self.dtype or torch.float32
        try:
            if dtype_of(self.base) == torch.float64:
                inputs = [_cast(given, torch.float64) for given in self.inputs]
                attempt.error_float64 = compare_outputs(self.base, merged, inputs).max_rel_error
                if attempt.error_float64 > _TOLERANCE[torch.float64]:
                    return False
            if self.dtype is not None:
                merged.to(self.dtype)
                self._keep_buffer_types(merged)
            attempt.error = compare_outputs(self.network, merged, self.inputs).max_rel_error
        except ConfigError:  # the merged network cannot even be called
            attempt.error = math.inf
        kinds = {p.dtype for p in self.network.parameters()} or {dtype}
        return attempt.error <= max(_TOLERANCE.get(kind, 1e-5) for kind in kinds)
