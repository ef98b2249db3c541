"""Merge: replace regions by layers composed from them, where that is exact and not slower."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

from torch import fx

from shoal.errors import OptionError
from shoal.measure import count_macs, depth, latency_in, latency_ratio
from shoal.merge.build import Attempt, Builder
from shoal.merge.conv_map import ConvMap
from shoal.merge.cut import Prices
from shoal.merge.peephole import fix_lines, simplify_
from shoal.merge.prices import LatencyCosts
from shoal.merge.reasons import CHANGED, CHANGED_ALL, FOLD_ONLY, WHOLE_IS_SLOWER
from shoal.merge.regions import find_regions
from shoal.merge.report import Kept, MergeReport
from shoal.merge.verify import Verifier, resized, sample_inputs
from shoal.modes import is_channels_last, make_channels_last
from shoal.network import Network
from shoal.network.cleanup import remove_dead_, used_paths
from shoal.runtimes import EAGER

__all__ = ["merge_"]

_SLOWER = 1.02  # a merge that makes the whole network slower than this is undone


def merge_(
    network: Network,
    loader: Iterable[Any] | None = None,
    *,
    policy: str = "measured",
    batch: int = 1,
    runtime: str = EAGER,
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
        runtime: where it is measured: "eager" is PyTorch, "onnxruntime" the exported network.

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

        >>> report = shoal.merge_(shoal.linearize_(net, ["1"], how="identity"), policy="always")
        >>> report.depth_before, report.depth_after, report.max_rel_error < 1e-5
        (2, 1, True)
    """
    if policy not in ("measured", "always", "fold"):
        raise OptionError("policy", policy, "'measured', 'always' or 'fold'")
    if batch < 1:
        raise OptionError("batch", batch, "at least 1")
    return _Merger(network, sample_inputs(network, loader), policy, batch, runtime).run()


class _Merger:
    def __init__(
        self, network: Network, inputs: list[Any], policy: str, batch: int, runtime: str
    ) -> None:
        self.network = network
        self.inputs = inputs
        self.batch = batch
        self.runtime = runtime
        self.policy = policy
        self.verifier = Verifier(network, inputs)
        self.costs = LatencyCosts(network, batch, runtime)

    def run(self) -> MergeReport:
        attempt, slower = self._verified(self.policy), False
        before_ms = after_ms = None
        if self.policy == "measured" and attempt.joined:
            folded, slower = self._verified("fold"), self._was_slower()
            if not slower:
                before_ms, after_ms, ratio = self._latencies(folded.network, attempt.network)
                slower = ratio > _SLOWER
            if slower:
                joined = [m for m in attempt.merged if m.weighted_before > 1]
                folded.kept = [k for k in folded.kept if k.reason != FOLD_ONLY]
                folded.kept += [Kept(m.layers, WHOLE_IS_SLOWER, m.region) for m in joined]
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
        )
        self._adopt(attempt, slower)
        return report

    def _was_slower(self) -> bool:
        """Whether all that was done last is a merge that was measured here, and undone."""
        done = self.network.plan.operations
        return bool(done) and done[-1].options.get("slower") == [self.runtime, self.batch]

    def _adopt(self, attempt: Attempt, slower: bool) -> None:
        """Make the network what the attempt is; record it, and where joining was slower."""
        training = self.network.training
        changed = attempt.merged or attempt.reshaped or attempt.network.code != self.network.code
        if changed:
            self.network.become(attempt.network)
            self.network.train(training)
        if changed or (slower and not self._was_slower()):
            layers = {item.name: list(item.layers) for item in attempt.merged}
            options = {"slower": [self.runtime, self.batch]} if slower else {}
            self.network.plan.record("merge", (), layers=layers, **options)

    def _verified(self, policy: str) -> Attempt:
        """Return an attempt that computes what the network computes, leaving out what does not."""
        attempt = self._attempt(policy, skip=frozenset())
        if self.verifier.agrees(attempt):
            return attempt
        skip: set[str] = set()
        for found in attempt.boundaries:
            alone = {other.region for other in attempt.boundaries} - {found.region} - skip
            if not self.verifier.agrees(self._attempt(policy, skip=frozenset(alone | skip))):
                skip.add(found.region)
        attempt = self._attempt(policy, skip=frozenset(skip))
        if self.verifier.agrees(attempt):
            undone = [found for found in attempt.boundaries if found.region in skip]
            attempt.kept += [Kept(found.layers, CHANGED, found.region) for found in undone]
            return attempt
        nothing = Attempt(self.network.copy().eval(), boundaries=attempt.boundaries)
        nothing.kept = [Kept(m.layers, CHANGED_ALL, m.region) for m in attempt.merged]
        nothing.error = 0.0
        return nothing

    def _latencies(self, folded: Network, merged: Network) -> tuple[float, float, float]:
        inputs = resized(self.inputs[-1], self.batch)
        networks = {"folded": folded, "merged": merged}
        timing = latency_in(self.runtime, networks, inputs, min_seconds=0.3)
        before, after = timing["folded"], timing["merged"]
        return before.median_ms, after.median_ms, latency_ratio(after, before).median

    # ------------------------------------------------------------------ merging

    def _prices(self, policy: str) -> Prices:
        if policy == "measured":
            return Prices(self.costs.map_ms)
        # As few layers as can be; a scale and shift counts a little, so that it is folded.
        joins = policy == "always"
        return Prices(_count_layers, joins=joins, most_work=math.inf, margin=1.0, in_ms=False)

    def _attempt(self, policy: str, skip: frozenset[str]) -> Attempt:
        """Return a merged copy, in which another merge finds nothing to do."""
        work = self.verifier.base.copy()
        attempt = Attempt(work)
        prices = self._prices(policy)
        used = used_paths(work.graph.nodes)
        for again in itertools.count():
            # What was composed before a mean may then come after it, and meet the layers there.
            simplify_(work, pool_first=policy != "fold")
            used |= used_paths(work.graph.nodes)
            builder = Builder(work, prices)
            for region in find_regions(work):
                builder.build(region, leave=region.end.name in skip)
            if builder.merged or not again:
                attempt.take(builder)
            used |= used_paths(work.graph.nodes)
            remove_dead_(work, used)
            if not builder.merged:
                break
        attempt.reshaped = fix_lines(work)
        if is_channels_last(self.network):
            make_channels_last(work)  # the composed layers too
        return attempt


def _count_layers(found: ConvMap, node: fx.Node) -> float:
    return 0.0 if found.is_identity else 0.1 if found.is_affine else 1.0 + 0.01 * found.ones
