"""Stages: blocks that work at one resolution and width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from shoal.network import Network

__all__ = ["Stage", "relative_to_stage", "stages"]


@dataclass(frozen=True)
class Stage:
    """The blocks whose outputs have one shape.

    Attributes:
        index: from 0, in the order of the forward pass.
        shape: of a sample's output; None for a size that is not fixed.
        blocks: names of all blocks, in the order of the forward pass.
        removable: names of those that can be dropped.
    """

    index: int
    shape: tuple[int | None, ...]
    blocks: tuple[str, ...]
    removable: tuple[str, ...]

    @property
    def title(self) -> str:
        """The shape for people, as "16×32×32"."""
        return "×".join("?" if size is None else str(size) for size in self.shape)


def stages(network: Network) -> list[Stage]:
    """Return the network's stages in the order of the forward pass.

    A stage is all blocks whose addition gives one shape (published code: the layers between
    downsamplings; Jordao et al. 2023, Figure 3). Blocks that cannot be removed belong to one too.
    """
    by_shape: dict[tuple[int | None, ...], list[tuple[str, bool]]] = {}
    for block in network.blocks:
        shape = tuple(block.addition.meta.get("shape") or ())[1:]
        by_shape.setdefault(shape, []).append((block.name, block.removable))
    return [
        Stage(
            index,
            shape,
            tuple(name for name, _ in blocks),
            tuple(name for name, removable in blocks if removable),
        )
        for index, (shape, blocks) in enumerate(by_shape.items())
    ]


def relative_to_stage(values: Mapping[str, float], network: Network) -> dict[str, float]:
    """Divide each block's value by its stage's mean, so that all can be ranked together."""
    relative = dict(values)
    for stage in stages(network):
        names = [name for name in stage.blocks if name in values]
        mean = fmean(values[name] for name in names) if names else 0.0
        if mean != 0:  # NaN too: what is broken in one block must not make the others look low
            relative |= {name: values[name] / mean for name in names}
    return relative
