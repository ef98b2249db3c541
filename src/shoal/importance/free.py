"""Criteria that look at no data: chance, the order of layers, batch norms, a branch's weights."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from typing_extensions import override

from shoal.errors import ConfigError
from shoal.importance.candidates import (
    block_candidates,
    candidates,
    rectifiers,
    relative_to_stage,
)
from shoal.importance.criterion import (
    Criterion,
    PlaceOptions,
    ScopeOptions,
    Scores,
    register_criterion,
)
from shoal.importance.entropy import binary_entropy
from shoal.network import Network, Site
from shoal.network.blocks import Block
from shoal.network.flow import is_weighted, own_tensors
from shoal.options import option
from shoal.passes.batches import Data
from shoal.seeds import derive_seed
from shoal.surgery.norm_lines import norm_inputs, share_on


@register_criterion("random")
class Random(Criterion):
    """Scores by chance, uniformly in [0, 1): the baseline to report beside every criterion.

    The score depends on the seed and the name alone, so what is left keeps its order when others
    go.
    """

    asks = frozenset({"place", "seed"})

    @dataclass(frozen=True, kw_only=True)
    class Options(PlaceOptions):
        """What is scored, and the seed."""

        seed: int = option(0, "Another one gives another order.")

    options: Options

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        names = [candidate.name for candidate in candidates(network, self.place)]
        seed = self.options.seed
        draws = {name: random.Random(derive_seed(seed, "random", name)).random() for name in names}
        return Scores(self.name, draws, 0)


@register_criterion("last")
class Last(Criterion):
    """Scores by how many candidates come later: the last one has 0 and goes first.

    For large language models, dropping the last blocks is hard to beat (Gromov et al. 2024).
    """

    asks = frozenset({"place"})
    Options = PlaceOptions

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        names = [candidate.name for candidate in candidates(network, self.place)]
        return Scores(self.name, {n: float(len(names) - i) for i, n in enumerate(names, 1)}, 0)


@register_criterion("norm_entropy")
class NormEntropy(Criterion):
    """Scores a site by the entropy that the batch norm before it implies, without data.

    P(ON) = Φ(β/|γ|) for each channel, which is how often a Gaussian of that mean and deviation is
    above 0 (Liao et al. 2025, TLC; its published code computes this and removes by something else).
    Sites whose rectifier follows something else than a batch norm are left out.
    """

    place = "site"
    unit = "bits"

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        shares = {name: share_on(given) for name, given in norm_inputs(network).items()}
        if not shares:
            raise ConfigError(
                "no rectifier that is left follows a batch norm directly: choose another criterion "
                "than norm_entropy, such as entropy"
            )
        values = {name: float(binary_entropy(p, 1 - p).mean()) for name, p in shares.items()}
        details = {name: {"on": float(p.mean())} for name, p in shares.items()}
        return Scores(self.name, values, 0, details=details)


class _Magnitude(Criterion):
    """A score from weights, ranked within stages by default."""

    Options = ScopeOptions
    options: ScopeOptions

    @abstractmethod
    def of(self, network: Network, block: Block) -> float:
        """Return the bare score of one block."""

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        values = {b.name: self.of(network, b) for b in block_candidates(network)}
        details = {name: {"value": value} for name, value in values.items()}
        if self.options.scope == "stage":
            values = relative_to_stage(values, network)
        return Scores(self.name, values, 0, details=details)


@register_criterion("l1")
class L1(_Magnitude):
    """The mean absolute weight of the branch's convolutions and linear layers.

    After Jordao et al. 2023, A.2. `details` holds the bare value, whatever the scope.
    """

    twin = "site_l1"

    @override
    def of(self, network: Network, block: Block) -> float:
        return _mean(network, block, torch.abs)


@register_criterion("site_l1")
class SiteL1(Criterion):
    """The mean absolute weight of the layer that a site's rectifier follows, norms between or not.

    Where that is an addition, the last layer of the branch; a rectifier that follows no layer is
    left out.
    """

    place = "site"
    Options = ScopeOptions
    options: ScopeOptions

    @override
    def compute(self, network: Network, data: Data) -> Scores:
        sites = rectifiers(network)
        layers = {site.name: network.view.layer_before(site.node) for site in sites}
        values = {
            name: float(network.get_parameter(f"{layer}.weight").detach().double().abs().mean())
            for name, layer in layers.items()
            if layer is not None
        }
        if not values:
            raise ConfigError("no rectifier follows a layer with weights: choose another criterion")
        details = {name: {"value": value} for name, value in values.items()}
        if self.options.scope == "stage":
            values = _by_shape(values, sites)
        return Scores(self.name, values, 0, details=details)


def _by_shape(values: Mapping[str, float], sites: Sequence[Site]) -> dict[str, float]:
    """Divide each site's value by the mean over the sites whose inputs have its shape."""
    shapes = {s.name: tuple(s.node.meta.get("shape") or ())[1:] for s in sites if s.name in values}
    means = {
        shape: fmean(values[n] for n in shapes if shapes[n] == shape) for shape in shapes.values()
    }
    return {name: values[name] / (means[shape] or 1.0) for name, shape in shapes.items()}


@register_criterion("l2")
class L2(_Magnitude):
    """The mean square weight of the same layers as for l1 (after Jordao et al. 2023, A.2)."""

    @override
    def of(self, network: Network, block: Block) -> float:
        return _mean(network, block, torch.square)


@register_criterion("bn_scale")
class BatchNormScale(_Magnitude):
    """The mean absolute scale γ of the branch's last batch norm (after Liu et al. 2017)."""

    @override
    def of(self, network: Network, block: Block) -> float:
        called = (str(n.target) for n in reversed(block.branch) if n.op == "call_module")
        for module in map(network.get_submodule, called):
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
                return float(module.weight.detach().double().abs().mean())
        raise ConfigError(
            f"block '{block.name}' has no batch norm with a scale: choose another criterion "
            "than bn_scale"
        )


def _mean(network: Network, block: Block, of: Callable[[Tensor], Tensor]) -> float:
    """Return the mean of a function over all weights, without biases; 0 if there are none."""
    used = [
        tensor
        for node in block.branch
        if is_weighted(node, network)
        for tensor in own_tensors(node, network).values()
    ]
    weights = {id(w): w.detach().double() for w in used if w.dim() > 1}.values()
    total = sum(float(of(weight).sum()) for weight in weights)
    return total / max(1, sum(weight.numel() for weight in weights))
