"""A criterion is one file: built in, registered, an entry point, or named by its path."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from shoal import registry
from shoal.errors import ConfigError, NameNotFoundError
from shoal.importance import (
    Criterion,
    criteria,
    criterion_for,
    make_criterion,
    score_by,
    score_several,
)
from shoal.network import Network, capture
from shoal.options import options_of
from shoal.surgery import LineMoments

OWN = '''
from dataclasses import dataclass
from shoal.importance import Criterion, Scores
from shoal.options import option

class Own(Criterion):
    """Scores sites by their place, forwards or backwards."""

    place = "site"
    unit = "steps"

    @dataclass(frozen=True, kw_only=True)
    class Options(Criterion.Options):
        backwards: bool = option(False, "Start at the end.")
        names: tuple[str, ...] | None = option(None, "These only.")

    def compute(self, network, data):
        names = [site.name for site in network.sites]
        if self.options.names is not None:
            names = [name for name in names if name in self.options.names]
        names = names[::-1] if self.options.backwards else names
        return Scores(self.name, {name: i for i, name in enumerate(names)}, 0)

class Broken(Criterion):
    def __init__(self, **options):
        super().__init__(**options)
        len(3)

    def compute(self, network, data):
        raise NotImplementedError

def not_one():
    return 3
'''


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return capture(
        nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()), torch.randn(2, 4)
    )


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


@pytest.fixture
def _registry_as_it_was() -> Iterator[None]:
    before = dict(criteria._entries)
    yield
    criteria._entries.clear()
    criteria._entries.update(before)


def batches() -> list[Tensor]:
    return list(torch.randn(11, 4, generator=torch.Generator().manual_seed(1)).split(4))


def test_a_file_outside_the_package_names_a_criterion(network: Network, own: str) -> None:
    forwards = shoal.score(network, (), f"{own}:Own")
    assert dict(forwards) == {"1": 0, "3": 1}
    assert forwards.title == "Own, steps"
    assert dict(shoal.score(network, (), f"{own}:Own?backwards=true")) == {"3": 0, "1": 1}
    assert dict(shoal.score(network, (), f"{own}:Own?backwards=false")) == {"1": 0, "3": 1}
    assert dict(shoal.score(network, (), f"{own}:Own?names=['3']")) == {"3": 0}
    assert dict(shoal.score(network, (), f"{own}:Own", names=["1"])) == {"1": 0}
    assert criterion_for(f"{own}:Own", "site").place == "site"
    with pytest.raises(ConfigError, match="scores sites"):
        criterion_for(f"{own}:Own", "block")


def test_whose_mistake_it_is_is_said(own: str) -> None:
    with pytest.raises(ConfigError, match=r"does not take these options.*'backward'.*'backwards'"):
        make_criterion(f"{own}:Own?backward=true")
    with pytest.raises(ConfigError, match="backwards is 3: give true or false"):
        make_criterion(f"{own}:Own?backwards=3")
    with pytest.raises(ConfigError, match="is not a criterion"):
        make_criterion(f"{own}:not_one")
    with pytest.raises(NameNotFoundError, match="Owl"):
        make_criterion(f"{own}:Owl")
    with pytest.raises(TypeError, match="has no len"):  # not an option that the user gave
        make_criterion(f"{own}:Broken")


def test_a_criterion_itself_scores(network: Network, own: str) -> None:
    made = make_criterion(f"{own}:Own", backwards=True)
    assert dict(shoal.score(network, (), made)) == {"3": 0, "1": 1}
    assert dict(score_by(made, network, ())) == {"3": 0, "1": 1}
    with pytest.raises(ConfigError, match="backwards: options are for a criterion by its name"):
        shoal.score(network, (), made, backwards=False)


def test_an_installed_package_brings_criteria(
    network: Network, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(own).parent))
    point = EntryPoint("theirs", "own:Own", "shoal.criteria")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if "crit" in group else [])
    try:
        assert "theirs" in criteria.names()
        assert dict(shoal.score(network, (), "theirs?backwards=true")) == {"3": 0, "1": 1}
    finally:
        criteria._entries.pop("theirs", None)
        sys.modules.pop("own", None)


def test_what_is_observed_beside_a_criterion_shares_its_only_pass(network: Network) -> None:
    class Counted(list):  # type: ignore[type-arg]
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return super().__iter__()

    data, moments = Counted(batches()), LineMoments()
    scores = score_by(make_criterion("entropy"), network, data, beside=[moments])
    assert data.passes == 1
    assert set(moments.lines()) == set(scores) == {"1", "3"}
    several = score_several(network, data, [make_criterion("entropy"), make_criterion("entropy")])
    assert data.passes == 2
    assert several[0] == several[1] == scores
    score_by(make_criterion("random?place=site"), network, data, beside=[moments])
    assert data.passes == 3


@pytest.mark.parametrize(
    ("criterion", "unit"),
    [
        ("entropy", "bits"), ("block_entropy", "bits"), ("kl", "nats"), ("lesion", "nats"),
        ("lesion?metric=accuracy", "points"), ("line_loss", "nats"),
        ("collapse_loss?metric=accuracy", "points"), ("cka", ""), ("l1", ""),
    ],
)  # fmt: skip
def test_figures_have_units(criterion: str, unit: str) -> None:
    assert make_criterion(criterion).unit == unit


def test_scores_carry_the_unit_to_tables(network: Network) -> None:
    scores = shoal.score(network, batches(), "entropy")
    assert scores.title == "entropy, bits"
    assert shoal.score(network, batches(), saved_ms=dict.fromkeys(scores, 1.0)).unit == (
        "bits per ms"
    )


@pytest.mark.long
def test_every_file_of_the_room_is_found_and_every_criterion_says_what_it_does() -> None:
    code = "from shoal.importance import criteria; print(' '.join(criteria.names()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert {"entropy", "line_loss", "collapse_loss", "fit_residual", "consensus"} <= found
    for name in found:
        assert issubclass(criteria[name], Criterion)
        assert criteria[name].name == name
        assert criteria[name].__doc__
        options = {option.name for option in options_of(criteria[name].Options)}
        assert criteria[name].asks <= options


def test_the_table_of_the_docs_is_true_of_every_criterion() -> None:
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    table = text.split("| name | of | formula | needs | options |\n")[1].split("\n\n")[0]
    listed, plural = set(), {"site": "sites", "block": "blocks", "stretch": "stretches"}
    for line in table.splitlines()[1:]:
        names, places, formula, _, options = line.strip("| ").split(" | ")
        for name in re.findall(r"`(\w+)`", names):
            listed.add(name)
            own = {option.name: option for option in options_of(criteria[name].Options)}
            place = own.pop("place", None)
            kinds = (criteria[name].place,) if place is None else place.check.choices
            assert places == ", ".join(plural[kind] for kind in kinds), name
            assert options == (", ".join(f"`{option}`" for option in own) or "–"), name
            module = sys.modules[criteria[name].__module__].__doc__
            said = f"{module} {criteria[name].__doc__}"
            assert all(year in said for year in re.findall(r"[12][0-9]{3}", formula)), name
    built_in = {n for n in criteria.names() if criteria[n].__module__.startswith("shoal.")}
    assert listed == built_in
