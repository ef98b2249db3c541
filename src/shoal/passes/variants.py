"""Outputs of many variants of a network that differ from it in one place each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import fx

from shoal.network import Network
from shoal.network.runner import Runner

__all__ = ["Variants"]


class Variants:
    """Runs a network once per batch, then again from any of the given nodes on.

    A variant puts another value in the place of one node's and runs only what comes after it.
    Between a run and its variants the values that they start from are held: for a residual network
    about one tensor per block.

    Args:
        network: the captured network; it must not be changed while this is used.
        nodes: those whose values may be replaced.
        reads: further nodes that `value` gives after a run, to make replacements of.
        watch: nodes that `watched` gives after a run or a variant.
    """

    def __init__(
        self,
        network: Network,
        nodes: Sequence[fx.Node],
        *,
        reads: Collection[fx.Node] = (),
        watch: Collection[fx.Node] = (),
    ) -> None:
        self._flatten = network.inputs.flatten
        self._later = {node: Runner(network, start=[node], keep=watch) for node in nodes}
        held = {*reads, *watch}.union(*(later.reads for later in self._later.values()))
        self._whole = Runner(network, keep=held)
        self._values: dict[fx.Node, Any] = {}
        self._latest: dict[fx.Node, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network itself on a batch, called like it; returns what it returns."""
        self._values = self._latest = {}  # free the former batch first
        self._values = self._latest = self._whole.values(*self._flatten(args, kwargs))
        return self._whole.result(self._values)

    def value(self, node: fx.Node) -> Any:
        """Return the value of one of the `reads` in the last run."""
        return self._values[node]

    def with_override(self, node: fx.Node, value: Any) -> Any:
        """Return what the network gives on the last run's batch if `node` had this value."""
        later = self._later[node]
        self._latest = later.values(given={**self._values, node: value})
        return later.result(self._latest)

    def watched(self, node: fx.Node) -> Any:
        """Return the value of one of the `watch` in the last run or variant."""
        return self._latest[node]
