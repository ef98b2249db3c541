"""Figures of what criteria say of a network's blocks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.extras.figures.canvas import check_path, empty_figure, hatch, style, write
from shoal.importance import Scores, score, stages
from shoal.network import Network


def l1_by_stage(network: Network, path: str | Path) -> Path:
    """Draw the mean absolute weight of each removable block, coloured by stage.

    Figure 3 of Jordao et al. 2023 for any network: where the bare scores follow the stage, ranking
    all blocks together always picks the same stages. Returns the path, of a .png, .svg or .pdf.

    Raises:
        ConfigError: there is no removable block, or the ending is another one.
        FileError: the file cannot be written.
        ShoalError: matplotlib is not installed.
    """
    target = check_path(path)
    scores = score(network, (), "l1?scope=global")
    figure = empty_figure(width=2.0 + 0.35 * len(scores), height=3.6)
    axes = figure.subplots()
    place = {name: i for i, name in enumerate(scores)}
    for stage in stages(network):
        names = [name for name in stage.removable if name in place]
        if names:
            label = f"stage {stage.index + 1} ({stage.title})"
            axes.bar(
                [place[n] for n in names], [scores[n] for n in names], label=label, zorder=2,
                color=style(stage.index)["color"], hatch=hatch(stage.index), edgecolor="white",
            )  # fmt: skip
    axes.set_xticks(range(len(scores)), list(scores), rotation=90, fontsize=8)
    axes.set_xlabel("removable block, in the order of the forward pass")
    axes.set_ylabel("ℓ1: mean absolute weight")
    axes.grid(axis="y", alpha=0.4, zorder=0)
    axes.margins(y=0.25)  # room for the legend above the bars
    axes.legend(fontsize=8, loc="upper left", ncols=3)
    return write(figure, target)


def criteria_map(
    network: Network, scores: Mapping[str, Scores], path: str | Path, *, remove: int = 1
) -> Path:
    """Draw in which order each criterion would remove the blocks, side by side; return the path.

    Args:
        network: the network that was scored; its stages are marked.
        scores: by a title for each, all of blocks.
        path: where to write; .png, .svg or .pdf.
        remove: how many removals are highlighted.

    Raises:
        ConfigError: there are no scores, they are not of this network's blocks, or the ending is
            another one.
        FileError: the file cannot be written.
        ShoalError: matplotlib is not installed.
    """
    target = check_path(path)
    stage_of = {name: stage.index for stage in stages(network) for name in stage.blocks}
    names = [b.name for b in network.blocks if any(b.name in s for s in scores.values())]
    foreign = next((n for s in scores.values() for n in s if n not in stage_of), None)
    if not names or foreign is not None:
        raise ConfigError(
            "there are no scores to draw"
            if foreign is None
            else f"'{foreign}' is no block of this network: give scores of its blocks"
        )
    figure = empty_figure(width=2.5 + 0.42 * len(names), height=1.8 + 0.42 * len(scores))
    axes = figure.subplots()
    for row, own in enumerate(scores.values()):
        order = own.lowest(len(own))
        for column, name in enumerate(names):
            if name in own:
                _cell(axes, column, row, order.index(name) + 1, len(order), remove)
    for column in range(1, len(names)):
        if stage_of[names[column]] != stage_of[names[column - 1]]:
            axes.axvline(column - 0.5, color="black", linewidth=1.5)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_xlabel(f"block; the number tells when it would go, the first {remove} in red")
    return write(figure, target)


def _cell(axes: Any, column: int, row: int, turn: int, count: int, remove: int) -> None:
    gone = turn <= remove
    shade = 0.55 + 0.4 * (turn - 1) / max(1, count - 1)
    colour, text = ((0.80, 0.15, 0.15), "white") if gone else ((shade, shade, shade), "black")
    axes.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, color=colour, lw=0)
    axes.text(column, row, str(turn), ha="center", va="center", fontsize=8, color=text)
