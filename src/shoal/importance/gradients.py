"""Criteria from gradients of the loss: Taylor, SNIP, GraSP. They need labels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import ConfigError, TrainingError
from shoal.importance.candidates import block_candidates
from shoal.importance.criteria import criteria
from shoal.importance.scores import Scores
from shoal.modes import device_of, kept_flags
from shoal.network import Network
from shoal.network.blocks import Block
from shoal.network.weights import own_tensors
from shoal.onednn import safe_convolutions
from shoal.passes.batches import Batches
from shoal.training.losses import check_targets, logits_of, sample_losses

__all__ = ["GraSP", "Gradient", "Snip", "Taylor", "score_by_gradients"]

Gradients = Sequence[Tensor]


class Gradient(ABC):
    """A sum over all parameters θ of a branch, of their values and gradients.

    Args:
        statistics: what batch norms normalise with. "running": as in eval mode, so that the score
            depends on the samples alone; "batch": each batch's own, as in training, which an
            untrained network needs. The running statistics stay as they are.

    Raises:
        ConfigError: `statistics` has another value.
    """

    unit = "block"
    name: str
    curved = False  # whether it needs H g, for which the data are gone over once more

    def __init__(self, *, statistics: str = "running") -> None:
        if statistics not in ("running", "batch"):
            raise ConfigError(f"statistics is '{statistics}': choose 'running' or 'batch'")
        self.statistics = statistics

    @abstractmethod
    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        """Return what a parameter adds to the score of its branch, entry by entry.

        Args:
            value: θ, in float64.
            direction: its gradient g, or H g where the criterion is `curved`.
        """

    def score(
        self,
        network: Network,
        loader: Iterable[Any],
        *,
        samples: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score the removable blocks; raises as `score_by_gradients` does."""
        return score_by_gradients(network, loader, [self], samples=samples, progress=progress)[0]


@criteria.register("taylor")
class Taylor(Gradient):
    """Σ (θ·g)²: the squared first-order change of the loss without each parameter.

    g is the gradient of the mean loss over the data (Molchanov et al. 2019, eq. 8).
    """

    name = "taylor"

    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        """Return (θ·g)²."""
        return (value * direction).square()


@criteria.register("snip")
class Snip(Gradient):
    """Σ |θ·g|: how sensitive the loss is to each connection (Lee et al. 2019, eq. 6).

    Over all parameters of the branch, norms and biases included; Lee et al. take weights alone.
    Also for an untrained network; use `statistics="batch"` there.
    """

    name = "snip"

    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        """Return |θ·g|."""
        return (value * direction).abs()


@criteria.register("grasp")
class GraSP(Gradient):
    """Σ θ·(H g): what removal takes from the flow of gradients (Wang et al. 2020, eq. 8).

    The paper scores −θ·(H g) and removes the highest; here, as everywhere in shoal, the lowest
    goes first, hence the sign. H is the Hessian of the mean loss and g its gradient, over all
    parameters, norms and biases included. Two rounds over the data. Also for an untrained network;
    use `statistics="batch"` there.
    """

    name = "grasp"
    curved = True

    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        """Return θ·(H g)."""
        return value * direction


def score_by_gradients(
    network: Network,
    loader: Iterable[Any],
    chosen: Sequence[Gradient],
    *,
    samples: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Scores]:
    """Score the removable blocks by criteria with the same statistics, computing g and H g once.

    Raises:
        ConfigError: there is no removable block.
        DataError: the loader is empty or gives no labels.
        TrainingError: a score is not finite.
    """
    blocks = block_candidates(network)
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    curved = any(criterion.curved for criterion in chosen)
    rounds = 2 if curved else 1
    batches = Batches(loader, device_of(network), samples=samples, progress=progress, rounds=rounds)
    loss = _Loss(network, batches)
    with (
        _differentiable(network, parameters, chosen[0].statistics == "batch"),
        safe_convolutions(network),
    ):
        gradient = loss.gradient(parameters)
        curvature = loss.gradient(parameters, along=gradient) if curved else gradient
    found = []
    for criterion in chosen:
        directions = curvature if criterion.curved else gradient
        by_parameter = {
            id(p): float(criterion.term(p.detach().cpu().double(), direction).sum())
            for p, direction in zip(parameters, directions, strict=True)
        }
        values = {b.name: _total(network, b, by_parameter) for b in blocks}
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {criterion.name} score of '{name}' is not finite: the network's weights "
                    "or its data are broken; check them before scoring"
                )
        found.append(Scores(criterion.name, values, batches.seen))
    return found


class _Loss:
    """The mean loss over the data, to be differentiated."""

    def __init__(self, network: Network, batches: Batches) -> None:
        self.network = network
        self.batches = batches

    def gradient(
        self, parameters: Sequence[nn.Parameter], along: Gradients | None = None
    ) -> Gradients:
        """Return the gradient of the mean loss, float64 on the CPU.

        Args:
            parameters: what to differentiate by.
            along: a direction v: return H v instead, the derivative of the gradient along it.
        """
        sums = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
        # The fused kernels of attention cannot be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for _, batch in self.batches:
                for total, part in zip(sums, self._of(batch, parameters, along), strict=True):
                    if part is not None:
                        total += part.detach().cpu().double()
        return [sum_across(total) / self.batches.seen for total in sums]

    def _of(
        self, batch: Batch, parameters: Sequence[nn.Parameter], along: Gradients | None
    ) -> Sequence[Tensor | None]:
        """Return the gradient of the summed loss of a batch, or its derivative along `along`."""
        logits = logits_of(self.network(*batch.args, **batch.kwargs))
        check_targets(logits, batch.target)
        assert batch.target is not None  # check_targets has seen to it; this tells mypy
        loss = sample_losses(logits, batch.target).sum()
        first = torch.autograd.grad(
            loss, parameters, create_graph=along is not None, allow_unused=True
        )
        if along is None:
            return first
        products = [
            (g * v.to(g.device, g.dtype)).sum()
            for g, v in zip(first, along, strict=True)
            if g is not None and g.requires_grad
        ]
        if not products:
            return [None] * len(parameters)
        return torch.autograd.grad(sum(products), parameters, allow_unused=True)  # type: ignore[arg-type]


@contextmanager
def _differentiable(
    network: Network, parameters: Sequence[nn.Parameter], batch_statistics: bool
) -> Iterator[None]:
    """Make all parameters take part for a while, in eval mode but for batch statistics."""
    frozen = [p for p in parameters if not p.requires_grad]
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    buffers = [(b, b.clone()) for m in norms for b in m.buffers()] if batch_statistics else []
    with kept_flags(network):
        network.eval()
        for norm in norms if batch_statistics else ():
            norm.training = True
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _total(network: Network, block: Block, by_parameter: Mapping[int, float]) -> float:
    """Return the sum over the parameters that the branch uses."""
    used = {id(t) for node in block.branch for t in own_tensors(node, network).values()}
    return sum(by_parameter[key] for key in used if key in by_parameter)
