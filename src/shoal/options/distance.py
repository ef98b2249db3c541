"""The options of the distance between what goes into a block and what comes out (LaCoOT)."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.options.base import Options, at_least, option


@dataclass(frozen=True, kw_only=True)
class DistanceOptions(Options):
    """Which distance."""

    paired: bool = option(
        False,
        "Take the distance mean ‖y − x‖² / mean ‖x‖², which is cheaper and knows which sample went "
        "where, in place of the max-sliced Wasserstein distance (the paper's).",
    )
    directions: int = option(
        50, "Random directions that the sliced distance tries.", check=at_least(1)
    )
    optimise: int = option(
        3,
        "Steps of ascent from the best direction, that from mean to mean included. 0, as "
        "published, takes the best random one, which sees a small part of a shift.",
        check=at_least(0),
    )
    relative: bool = option(
        True,
        "Divide the sliced distance by the root mean square length of what goes in, so that a "
        "weight suits other networks too. Published: no.",
    )
