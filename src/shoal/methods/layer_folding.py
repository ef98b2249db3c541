"""Layer Folding (Ben Dror et al., BMVC 2022): learn how linear each rectifier may become.

Each rectifier r gets one slope α, from 0: σ(z) = α·z + (1 − α)·r(z). Training adds the penalty
λ·Σ|1 − α²|; rectifiers whose slope is near 1 are then linearized, the others come back as they
were, and the network is fine-tuned. The slopes have an optimizer of their own: with the recipe's,
how far they move would depend on its learning rate alone (at 1e-4 by Adam they hardly move).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from shoal import options
from shoal.options import above, at_least, between, one_of, option
from shoal.search.method import Method, register_method

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from shoal.search.lab import Lab

_MOMENTUM = 0.9
_LINEAR = 0.99  # from here on a slope is the identity's


@register_method("layer_folding")
class LayerFolding(Method):
    """Learns slopes, folds those that became linear, fine-tunes; all in one step."""

    @dataclass(frozen=True, kw_only=True)
    class Options(options.Options):
        """The options of Layer Folding."""

        slope_penalty: float = option(0.25, "Weight λ of the slopes' penalty.", check=above(0))
        slope_power: int = option(
            2,
            "The penalty is |1 − α^power|. With 1 it also lifts slopes off 0, where that of the "
            "paper (2) has no gradient and only the task can.",
            check=between(1, 2),
        )
        slope_epochs: int | None = option(
            None,
            "Epochs of training with slopes, before the fold.",
            check=at_least(1),
            default_text="as many as epochs",
        )
        slope_lr: float | None = option(
            None,
            "Learning rate of the slopes, by SGD with momentum 0.9 (the paper's: 0.001). By "
            "default a slope that the task lets go grows from 0.01 to 0.9 in half of the training.",
            check=above(0),
            default_text="by the length of the training",
        )
        threshold: float = option(
            0.9, "Fold rectifiers whose slope is this or more.", check=between(0, 1, ends="(]")
        )
        top_k: int | None = option(
            None,
            "Fold this many rectifiers, those with the highest slopes, whatever these are.",
            check=at_least(1),
            default_text="by the threshold",
        )
        how: str = option(
            "identity",
            "What takes the place of a rectifier whose slope is below 0.99: 'identity' (the "
            "paper), or the 'line' fitted to it.",
            check=one_of("identity", "line"),
        )

    @override
    def nothing_to_remove(self, lab: Lab) -> str:
        return "" if lab.network.sites_left else "the network has no rectifier to fold"

    @override
    def step(self, lab: Lab) -> bool:
        if lab.number > 1:
            return lab.done("the rectifiers whose slopes became linear are folded")
        self._learn(lab)
        slopes = {name: float(slope.detach()) for name, slope in lab.slopes().items()}
        chosen = self._chosen(lab, slopes)
        lab.note(f"largest slope {max(slopes.values()):.3f}, {len(chosen)} of {len(slopes)} folded")
        straight = [name for name in chosen if slopes[name] >= _LINEAR]
        lab.linearize(straight, "identity")
        lab.linearize([name for name in chosen if name not in straight], self.options.how)
        lab.replace([name for name in slopes if name not in chosen], lab.blended)
        lab.train()
        return True

    def _learn(self, lab: Lab) -> None:
        lab.replace([s.name for s in lab.network.sites if s.linearized is None], lab.blend)
        epochs = self.options.slope_epochs or lab.options.epochs
        lr = self.options.slope_lr or slope_lr(self.options.slope_penalty, lab.steps_of(epochs))
        weight, power = self.options.slope_penalty, self.options.slope_power
        lab.train(
            epochs,
            penalty=lambda network, _: slopes_penalty(lab.slopes(network).values(), weight, power),
            groups=lambda network: [slope_group(lab.slopes(network).values(), lr)],
            after_step=lambda network: clamp_slopes_(lab.slopes(network).values()),
        )

    def _chosen(self, lab: Lab, slopes: Mapping[str, float]) -> list[str]:
        """Return the sites to fold, the most linear first."""
        order = sorted(slopes, key=lambda name: -slopes[name])
        near = [name for name in order if slopes[name] >= self.options.threshold]
        if not near:
            threshold = self.options.threshold
            lab.note(f"no slope reached {threshold:g}: train longer, or raise slope_lr")
        elif len(near) == len(slopes) and self.options.top_k is None:
            lab.note("all slopes became linear: lower slope_lr or slope_penalty")
        wanted = len(near) if self.options.top_k is None else self.options.top_k
        if wanted < len(near):
            lab.note(
                f"{len(near)} slopes became linear, top_k folds {wanted}: the network has to learn "
                "the other rectifiers again; lower slope_lr or slope_penalty"
            )
        return order[: lab.at_most(wanted)]


def slopes_penalty(slopes: Iterable[Tensor], weight: float, power: int) -> Tensor:
    """Return λ·Σ|1 − α^power| over the slopes α, with the weight λ: a scalar of no unit."""
    terms = [(1 - slope**power).abs() for slope in slopes]
    return weight * sum(terms[1:], terms[0])


def slope_group(slopes: Iterable[Tensor], lr: float) -> dict[str, Any]:
    """Return the slopes' parameter group: plain SGD with momentum at a constant rate, no decay."""
    own = {"optimizer": "sgd", "momentum": _MOMENTUM, "nesterov": False, "weight_decay": 0.0}
    return {"params": list(slopes), "lr": lr, "constant": True, **own}


def clamp_slopes_(slopes: Iterable[Tensor]) -> None:
    """Bring slopes back to [0, 1], in place."""
    for slope in slopes:
        slope.data.clamp_(0.0, 1.0)


def slope_lr(penalty: float, steps: int) -> float:
    """Return the rate at which a free slope grows from 0.01 to 0.9 in half of the steps.

    Without the task's gradient, SGD with momentum m lets a slope grow by the factor r of a step
    that solves r + m/r = 1 + m + 2·λ·lr.
    """
    growth = 90.0 ** (2.0 / steps)
    return (growth - 1.0) * (1.0 - _MOMENTUM / growth) / (2.0 * penalty)
