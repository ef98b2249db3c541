"""Criteria from gradients of the loss: Taylor, SNIP, GraSP. They need labels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from shoal.data.batch import Batch
from shoal.distributed import sum_across
from shoal.errors import ShoalError, TrainingError
from shoal.importance.candidates import block_candidates
from shoal.importance.criterion import Joint, Scores, register_criterion
from shoal.modes import device_of, eval_mode
from shoal.network import Network
from shoal.network.flow import own_tensors
from shoal.onednn import safe_convolutions
from shoal.options import one_of, option
from shoal.passes.batches import Batches, Data
from shoal.passes.lone_samples import sees_one_value
from shoal.tasks import Task
from shoal.tasks.task import assert_has_gradient, losses_of


class Gradient(Joint):
    """A sum over all parameters θ of a branch, of their values and gradients."""

    curved = False  # whether it needs H g, for which the data are read once more

    @dataclass(frozen=True, kw_only=True)
    class Options(Joint.Options):
        """What batch norms do."""

        statistics: str = option(
            "running",
            "What batch norms normalise with: running as in eval mode, so that the score depends "
            "on the samples alone; batch each batch's own, as in training, which an untrained "
            "network needs. The running statistics stay as they are.",
            check=one_of("running", "batch"),
        )

    options: Options

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.needs = ("gradients", self.options.statistics)

    @abstractmethod
    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        """Return what a parameter θ adds to its branch's score, entry by entry, in float64.

        `direction` is its gradient g, or H g where the criterion is `curved`.
        """

    @classmethod
    @override
    def compute_together(
        cls, criteria: Sequence[Self], network: Network, data: Data
    ) -> list[Scores]:
        blocks = block_candidates(network)
        parameters = [p for p in network.parameters() if p.is_floating_point()]
        curved = any(criterion.curved for criterion in criteria)
        batches = data.batches(device_of(network), rounds=2 if curved else 1)
        of_batch = criteria[0].options.statistics == "batch"
        with _differentiable(network, parameters, of_batch), safe_convolutions(network):
            task = criteria[0].task
            gradient, samples = _gradient(network, task, batches, parameters)
            curvature = gradient
            if curved:
                curvature, _ = _gradient(network, task, batches, parameters, gradient)
        used = {
            block.name: {id(t) for n in block.branch for t in own_tensors(n, network).values()}
            for block in blocks
        }
        found = []
        for criterion in criteria:
            terms = {
                id(p): float(criterion.term(p.detach().cpu().double(), direction).sum())
                for p, direction in zip(
                    parameters, curvature if criterion.curved else gradient, strict=True
                )
            }
            values = {n: sum(terms[key] for key in own if key in terms) for n, own in used.items()}
            broken = next((name for name, v in values.items() if not math.isfinite(v)), None)
            if broken is not None:
                raise TrainingError(
                    f"the {criterion.name} score of '{broken}' is not finite: the network's "
                    "weights or its data are broken; check them before scoring"
                )
            found.append(Scores(criterion.name, values, samples))
        return found


@register_criterion("taylor")
class Taylor(Gradient):
    """Σ (θ·g)²: the squared first-order change of the loss without each parameter.

    g is the gradient of the mean loss over the data (Molchanov et al. 2019, eq. 8).
    """

    @override
    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        return (value * direction).square()


@register_criterion("snip")
class Snip(Gradient):
    """Σ |θ·g|: how sensitive the loss is to each connection (Lee et al. 2019, eq. 6).

    Over all parameters of the branch, norms and biases included; Lee et al. take weights alone.
    For an untrained network use `statistics="batch"`.
    """

    @override
    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        return (value * direction).abs()


@register_criterion("grasp")
class GraSP(Gradient):
    """Σ θ·(H g): what removal takes from the flow of gradients (Wang et al. 2020, eq. 8).

    The paper scores −θ·(H g) and removes the highest; here, as everywhere in shoal, the lowest
    goes first, hence the sign. H is the Hessian of the mean loss and g its gradient, over all
    parameters, norms and biases included. Reads the data twice. For an untrained network use
    `statistics="batch"`.
    """

    curved = True

    @override
    def term(self, value: Tensor, direction: Tensor) -> Tensor:
        return value * direction


def _gradient(
    network: Network,
    task: Task,
    batches: Batches,
    parameters: Sequence[nn.Parameter],
    along: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], int]:
    """Return the gradient g of the mean loss, or H v along a direction v, and the samples used.

    Both are in float64 on the CPU.
    """
    sums = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    used = torch.zeros((), dtype=torch.int64)
    normed = any(m.training for m in network.modules() if isinstance(m, _BatchNorm))
    # The fused kernels of attention cannot be differentiated twice.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for number, batch in batches:
            last = batch.size == 1 and batches.seen > number + 1
            if normed and last and sees_one_value(network, batch):
                continue  # as in training
            used += batch.size
            output = task.output(_run(network, batch))
            target = task.check(output, batch.target)
            loss = losses_of(task, output, target, batch.size).sum()
            assert_has_gradient(loss)
            parts: Sequence[Tensor | None] = torch.autograd.grad(
                loss, parameters, create_graph=along is not None, allow_unused=True
            )
            if along is not None:
                parts = _product(parts, along, parameters)
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total += part.detach().cpu().double()
    count = sum_across(used)
    return [sum_across(total) / count for total in sums], int(count)


def _run(network: Network, batch: Batch) -> Any:
    try:
        return network(*batch.args, **batch.kwargs)
    except ShoalError:
        raise
    except ValueError as error:  # of PyTorch's layers
        if not any(m.training for m in network.modules()):
            raise
        raise TrainingError(
            f"the network cannot compute a batch of size {batch.size}: {error}; give other batches "
            "or statistics='running'"
        ) from error


def _product(
    gradient: Sequence[Tensor | None], along: Sequence[Tensor], parameters: Sequence[nn.Parameter]
) -> tuple[Tensor | None, ...]:
    """Return the product of the Hessian with a direction, from the gradient and its graph."""
    products = [
        (g * v.to(g.device, g.dtype)).sum()
        for g, v in zip(gradient, along, strict=True)
        if g is not None and g.requires_grad
    ]
    if not products:
        return (None,) * len(parameters)
    return torch.autograd.grad(sum(products), parameters, allow_unused=True)  # type: ignore[arg-type]


@contextmanager
def _differentiable(
    network: Network, parameters: Sequence[nn.Parameter], batch_statistics: bool
) -> Iterator[None]:
    """Let all parameters have gradients for a while, in eval mode but for batch statistics."""
    frozen = [p for p in parameters if not p.requires_grad]
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and batch_statistics]
    buffers = [(b, b.clone()) for m in norms for b in m.buffers()]
    with eval_mode(network):
        for norm in norms:
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
