"""What of a network can be scored, blocks and sites, and what it gives with one of them gone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor, fx

from shoal.errors import ConfigError
from shoal.network import Network, Site
from shoal.network.blocks import Block
from shoal.network.runner import Runner


def unchanged(value: Tensor) -> Tensor:
    """Compute an identity."""
    return value


@dataclass(frozen=True)
class Candidate:
    """Another way to compute a tensor; by default, what the removal of a site or block leaves."""

    name: str
    node: fx.Node  # whose value changes: a block's addition, a rectifier
    source: fx.Node  # whose value it is computed from: the shortcut, the rectifier's input
    compute: Callable[[Tensor], Tensor] = unchanged
    weight: float = 1.0  # a race is decided by the cost times this
    group: str = ""  # each has a race of its own


def candidates(network: Network, place: str) -> list[Candidate]:
    """Return the removable blocks ("block") or the sites that have their rectifier ("site").

    They come in the order of the forward pass; raises `ConfigError` if there is none.
    """
    if place == "block":
        return [Candidate(b.name, b.addition, b.shortcut) for b in block_candidates(network)]
    sites = rectifiers(network)
    return [Candidate(site.name, site.node, site.node.all_input_nodes[0]) for site in sites]


def rectifiers(network: Network) -> list[Site]:
    """Return the sites that have their rectifier; raises `ConfigError` if there is none."""
    sites = [site for site in network.sites if site.linearized is None]
    if not sites:
        raise ConfigError(f"the network has no rectifier{' left' * bool(network.sites)} to score")
    return sites


def block_candidates(network: Network) -> list[Block]:
    """Return the removable blocks; raises `ConfigError` if there is none."""
    blocks = network.blocks
    removable = [block for block in blocks if block.removable]
    if removable:
        return removable
    if not blocks:
        raise ConfigError(
            "the network has no residual block: choose a method or a criterion for sites"
        )
    first = blocks[0]
    raise ConfigError(
        f"none of the network's {len(blocks)} residual blocks can be removed; "
        f"'{first.name}': {first.reason}"
    )


class Variants:
    """Runs a network once per batch, then again with any of the candidates, from its tensor on.

    Between a run and its variants the values that they start from are held: for a residual network
    about one tensor per block. The network must not be changed meanwhile.
    """

    def __init__(
        self, network: Network, chosen: Sequence[Candidate], watch: Collection[fx.Node] = ()
    ) -> None:
        self._flatten = network.inputs.flatten
        self._later = {c.node: Runner(network, start=[c.node], keep=watch) for c in chosen}
        held = {*watch, *(candidate.source for candidate in chosen)}
        held = held.union(*(later.reads for later in self._later.values()))
        self._whole = Runner(network, keep=held)
        self._values: dict[fx.Node, Any] = {}
        self._latest: dict[fx.Node, Any] = {}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network itself on a batch, called like it; returns what it returns."""
        self._values = self._latest = {}  # free the former batch first
        self._values = self._latest = self._whole.values(*self._flatten(args, kwargs))
        return self._whole.result(self._values)

    def run_with(self, candidate: Candidate) -> Any:
        """Return what the network gives on the last run's batch with a candidate."""
        later = self._later[candidate.node]
        value = candidate.compute(self._values[candidate.source])
        self._latest = later.values(given={**self._values, candidate.node: value})
        return later.result(self._latest)

    def watched(self, node: fx.Node) -> Any:
        """Return the value of one of the nodes to `watch` in the last run or variant."""
        return self._latest[node]


@dataclass(frozen=True)
class Stage:
    """The blocks whose outputs have one shape, by name, in the order of the forward pass."""

    index: int  # from 0, in the order of the forward pass
    shape: tuple[int | None, ...]  # of a sample's output; None for a size that is not fixed
    blocks: tuple[str, ...]
    removable: tuple[str, ...]  # those that can be dropped

    @property
    def title(self) -> str:
        """The shape for people, as "16×32×32"."""
        return "×".join("?" if size is None else str(size) for size in self.shape)


def stages(network: Network) -> list[Stage]:
    """Return the network's stages in the order of the forward pass.

    A stage is all blocks whose addition gives one shape (published code: the layers between
    downsamplings; Jordao et al. 2023, Figure 3). Blocks that cannot be removed belong to one too.
    """
    by_shape: dict[tuple[int | None, ...], list[Block]] = {}
    for block in network.blocks:
        shape = tuple(block.addition.meta.get("shape") or ())[1:]
        by_shape.setdefault(shape, []).append(block)
    return [
        Stage(
            index,
            shape,
            tuple(b.name for b in blocks),
            tuple(b.name for b in blocks if b.removable),
        )
        for index, (shape, blocks) in enumerate(by_shape.items())
    ]


def relative_to_stage(values: Mapping[str, float], network: Network) -> dict[str, float]:
    """Divide each block's value by its stage's mean, so that all can be ranked together."""
    relative = dict(values)
    for stage in stages(network):
        names = [name for name in stage.blocks if name in values]
        known = [values[name] for name in names if values[name] != math.inf]
        mean = fmean(known) if known else 0.0
        if mean != 0:  # NaN too: what is broken in one block must not make the others look low
            relative |= {name: values[name] / mean for name in names}
    return relative
