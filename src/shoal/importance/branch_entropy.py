"""The entropy of a block: the mean over its rectifiers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from shoal.data.batch import Batch
from shoal.errors import ConfigError
from shoal.importance.candidates import block_candidates
from shoal.importance.criterion import OnePass, register_criterion
from shoal.importance.entropy import Entropy
from shoal.importance.scores import Scores
from shoal.network import Network

__all__ = ["BlockEntropy"]


@register_criterion("block_entropy")
class BlockEntropy(OnePass):
    """Scores a block by EASIER's entropy, in bits, averaged over the branch's rectifiers.

    A linearized site counts as 0, for it is always in one state. A block without a rectifier
    (attention) has no entropy and is left out of the scores. One pass, no labels.

    Raises:
        ConfigError: at `attach`, if no removable block has a rectifier.
    """

    unit = Entropy.unit

    class Options(Entropy.Options):
        """Those of the criterion "entropy"."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._entropy = Entropy(**options)
        self._sites: dict[str, tuple[str, ...]] = {}
        self._samples = 0
        self._watched = False

    @override
    def attach(self, network: Network) -> Sequence[RemovableHandle]:
        blocks = block_candidates(network)
        self._sites = {block.name: block.sites for block in blocks if block.sites}
        if not self._sites:
            raise ConfigError(
                "no removable block of the network has a rectifier: choose another criterion"
            )
        self._watched = any(site.linearized is None for site in network.sites)
        return self._entropy.attach(network) if self._watched else []

    @override
    def begin(self, index: int, batch: Batch) -> None:
        if self._watched:
            self._entropy.begin(index, batch)

    @override
    def finish(self, samples: int, population: int | None) -> None:
        self._samples = samples
        if self._watched:
            self._entropy.finish(samples, population)

    @override
    def scores(self) -> Scores:
        by_site = self._entropy.scores() if self._watched else {}
        values = {
            name: fmean(by_site.get(site, 0.0) for site in sites)
            for name, sites in self._sites.items()
        }
        details = {
            name: {"entropies": {site: by_site.get(site, 0.0) for site in sites}}
            for name, sites in self._sites.items()
        }
        return Scores(self.name, values, self._samples, details=details)
