from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import shoal
from captures import resnet20
from changed import changed
from shoal.errors import ConfigError, ShoalError
from shoal.extras.figures import criteria_map, front, l1_by_stage, removed, score_map
from shoal.extras.figures import curves as drawn
from shoal.extras.figures.canvas import empty_figure, style, write
from shoal.extras.figures.runs import read_lines, telling
from shoal.importance import Scores, stages
from shoal.network import Network
from shoal.surgery import drop_
from small_runs import run

RESNET18 = {"model": "shoal:resnet18_cifar", "data": "cifar10:/data", "method": "easier"}


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet20()


@pytest.fixture
def matplotlib() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def test_stages_are_the_blocks_of_one_shape(network: Network) -> None:
    found = stages(network)
    assert [stage.title for stage in found] == ["4×16×16", "8×8×8", "16×4×4"]
    assert [stage.index for stage in found] == [0, 1, 2]
    assert found[1].blocks == ("layer2.0", "layer2.1", "layer2.2")
    assert found[1].removable == ("layer2.1", "layer2.2")
    smaller = changed(drop_, network.copy(), ["layer1.0", "layer1.1", "layer1.2"])
    assert [stage.title for stage in stages(smaller)] == ["8×8×8", "16×4×4"]


@pytest.mark.usefixtures("matplotlib")
def test_l1_by_stage_names_every_stage(network: Network, tmp_path: Path) -> None:
    path = l1_by_stage(network, tmp_path / "new" / "l1.svg")
    assert path.stat().st_size > 2000
    assert l1_by_stage(network, tmp_path / "l1.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("matplotlib")
def test_criteria_side_by_side(network: Network, tmp_path: Path) -> None:
    scores = {name: shoal.score(network, (), name) for name in ("random", "l1", "last")}
    assert criteria_map(network, scores, tmp_path / "map.svg", remove=2).stat().st_size > 2000


@pytest.mark.usefixtures("matplotlib")
def test_wrong_figures_are_one_line(network: Network, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png"):
        l1_by_stage(network, tmp_path / "l1.gif")
    with pytest.raises(ConfigError, match="no scores"):
        criteria_map(network, {}, tmp_path / "map.png")
    with pytest.raises(ConfigError, match="no block of this network"):
        criteria_map(network, {"x": Scores("x", {"layer9": 1.0}, 1)}, tmp_path / "map.png")
    plain = shoal.capture(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    with pytest.raises(ConfigError, match="no residual block"):
        l1_by_stage(plain, tmp_path / "l1.png")


def test_a_missing_package_is_named(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ShoalError, match=r"shoal\[report\]"):
        l1_by_stage(network, tmp_path / "l1.png")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, two of which differ in nothing but the seed."""
    folder = tmp_path_factory.mktemp("sweep")
    run(folder / "cells" / "a", how="line", seed=0)
    run(folder / "cells" / "b", how="line", seed=1)
    run(folder / "cells" / "c", how="identity", seed=0)
    return folder


def test_runs_that_differ_in_the_seed_alone_are_one_line(runs: Path) -> None:
    lines = read_lines([runs])
    assert [line.label for line in lines] == ["how=line", "how=identity"]
    assert [len(line.runs) for line in lines] == [2, 1]
    again = read_lines([runs / "cells" / "c", runs, runs / "cells" / "a"])
    assert [(line.label, len(line.runs)) for line in again] == [
        ("how=identity", 1),
        ("how=line", 2),
    ]


def test_as_few_options_as_needed_tell_experiments_apart() -> None:
    easier = {"method": "easier", "per_step": 1, "lr": 0.1, "seed": 0}
    other = {"method": "egp", "lr": 0.02, "seed": 1}
    assert telling([easier, other]) == ["method"]
    assert telling([easier, other, {**easier, "per_step": 2}]) == ["method", "per_step"]
    assert telling([easier, {**easier, "seed": 1, "weights": "x"}]) == []
    assert telling([easier, {**easier, "lr": 0.2}]) == ["lr"]


def test_a_line_is_the_mean_over_seeds(runs: Path) -> None:
    line = read_lines([runs])[0]
    counts, means, deviations = drawn._means(line, "test")
    one, other = ([step.metrics.top1_test or 0.0 for step in r.steps] for r in line.runs)
    assert counts == [0, 1, 2, 3, 4]
    assert means == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])
    assert deviations == pytest.approx(
        [abs(a - b) / 2**0.5 for a, b in zip(one, other, strict=True)]
    )


def test_nothing_beats_what_the_front_joins(runs: Path) -> None:
    steps = [step for line in read_lines([runs]) for r in line.runs for step in r.steps]
    for against in drawn.AGAINST:
        best = drawn._best(steps, "validation", against)
        costs = [drawn._cost(step, against) for step in best]
        qualities = [step.metrics.top1_val for step in best]
        assert costs == sorted(costs)
        assert qualities == sorted(set(qualities))
        for step in steps:
            cost, quality = drawn._cost(step, against), step.metrics.top1_val
            assert any(c <= cost and q >= quality for c, q in zip(costs, qualities, strict=True))


@pytest.mark.usefixtures("matplotlib")
def test_figures_of_runs_are_written(runs: Path, tmp_path: Path) -> None:
    for path in (
        removed([runs], tmp_path / "new" / "removed.svg"),
        front([runs], tmp_path / "front.svg"),
        front([runs / "cells" / "a"], tmp_path / "work.svg", against="macs"),
        score_map(runs / "cells" / "a", tmp_path / "scores.svg"),
    ):
        assert path.stat().st_size > 4000


@pytest.mark.usefixtures("matplotlib")
def test_dollar_signs_in_names_are_no_formula(tmp_path: Path) -> None:
    figure = empty_figure(7.0, 4.0)
    axes = figure.subplots()
    axes.plot([0, 1], label=r"$\wrong$")
    axes.set_title("a $price$")
    axes.legend()
    assert write(figure, tmp_path / "f.svg").stat().st_size > 4000


@pytest.mark.usefixtures("matplotlib")
def test_wrong_runs_are_one_line(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run in"):
        removed([tmp_path], tmp_path / "f.png")
    with pytest.raises(ConfigError, match="no folder"):
        removed([tmp_path / "missing"], tmp_path / "f.png")
    with pytest.raises(ConfigError, match="latency or macs"):
        front([runs], tmp_path / "f.png", against="energy")
    with pytest.raises(ConfigError, match=r"\.png"):
        score_map(runs / "cells" / "a", tmp_path / "f.gif")


def test_no_two_lines_of_a_figure_look_alike() -> None:
    looks = [tuple(style(index).values()) for index in range(56)]
    assert len(set(looks)) == 56
    in_grey = [(style(i)["marker"], style(i)["linestyle"]) for i in range(8)]
    assert len(set(in_grey)) == 8


def test_published_accuracies_stand_beside_those_of_the_same_network(runs: Path) -> None:
    (line,) = read_lines([runs / "cells" / "a"])
    assert drawn._printed(line) == {}
    about = {**RESNET18, "how": "identity"}
    printed = drawn._printed(replace(line, about=about))
    assert printed == {0: 92.47, 1: 92.39, 2: 92.82, 3: 92.15, 4: 92.47}
    assert drawn._printed(replace(line, about={**about, "rectifier": "gelu"})) == {}


@pytest.mark.parametrize("other", [{"criterion": "random"}, {"how": "line"}])
def test_nothing_is_drawn_beside_what_a_paper_did_not_do(runs: Path, other: dict[str, str]) -> None:
    (line,) = read_lines([runs / "cells" / "a"])
    about = {**RESNET18, "how": "identity", **other}
    assert drawn._printed(replace(line, about=about)) == {}


def test_those_of_several_removals_a_step_are_from_their_own_table(runs: Path) -> None:
    """Table 2 has 92.26 at eight, and Table 5, which is of one at a time, 92.10."""
    (line,) = read_lines([runs / "cells" / "a"])
    about = {**RESNET18, "how": "identity"}
    several = tuple(replace(one, total=17) for one in line.runs)
    for options, expected in (({"per_step": 1}, 92.10), ({"per_step": 2}, 92.26)):
        printed = drawn._printed(replace(line, runs=several, about={**about, **options}))
        assert (printed[0], printed[8]) == (92.47, expected)
    assert set(printed) == {0, 8}
    assert drawn._printed(replace(line, about={**about, "per_step": 3})) == {}


def test_a_sweep_without_a_finished_step_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cells" / "a" / "steps").mkdir(parents=True)
    (tmp_path / "cells" / "a" / "identity.json").write_text("{}")
    for draw in (removed, front):
        with pytest.raises(ConfigError, match="no run there has a finished step yet"):
            draw([tmp_path], tmp_path / "f.png")


def test_the_twin_of_a_run_is_not_drawn(runs: Path, tmp_path: Path) -> None:
    for name in ("a", "a/twin"):
        shutil.copytree(runs / "cells" / "c", tmp_path / "cells" / name)
    (line,) = read_lines([tmp_path])
    assert [one.folder for one in line.runs] == [tmp_path / "cells" / "a"]
    (twin,) = read_lines([tmp_path / "cells" / "a" / "twin"])  # unless it is asked for
    assert len(twin.runs) == 1
