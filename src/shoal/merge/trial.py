"""Merge for a measurement only: quickly, and without the proof that `merge_` gives."""

from __future__ import annotations

from shoal.merge.build import Builder
from shoal.merge.cut import Prices
from shoal.merge.peephole import fix_lines, simplify_
from shoal.merge.prices import LatencyCosts
from shoal.merge.regions import find_regions
from shoal.merge.units import weighted
from shoal.network import Network
from shoal.network.cleanup import remove_dead_, used_paths
from shoal.runtimes import EAGER

__all__ = ["trial_merge_"]


def trial_merge_(network: Network, *, batch: int, runtime: str = EAGER) -> Network:
    """Merge the layers of a network whose scales and shifts are folded, in place.

    Regions are cut as `merge_` cuts them under "measured". Nothing is compared or recorded, so the
    network is good for measuring and for nothing else.

    Returns:
        The network itself.
    """
    used = used_paths(network.graph.nodes)
    simplify_(network, pool_first=True)
    regions = [region for region in find_regions(network) if weighted(region.chain) > 1]
    if regions:
        costs = LatencyCosts(network, batch, runtime)
        builder = Builder(network, Prices(costs.map_ms))
        for region in regions:
            builder.build(region)
        costs.save()
    remove_dead_(network, used)
    fix_lines(network)
    return network
