"""What can be reproduced: the runs of each table and figure, with the published cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal import published
from shoal.errors import unknown_name
from shoal.published import Cell
from shoal.targets import parse_keywords

RECTIFIERS = ("relu", "leaky_relu", "prelu", "gelu", "silu")
"""Of Figure 3 (b)."""
_EASIER_READS = {"cifar10": {"split": "random"}}
"""What EASIER's code reads in another way than shoal does by itself."""


@dataclass(frozen=True)
class Wanted:
    """A run to make, and the published cells it is read against.

    Attributes:
        model: the network's name in the tables.
        data: the data set's.
        method: the method's.
        options: the method's, and what else is not of all runs of the target.
        cells: what is printed of it; empty where nothing is.
    """

    model: str
    data: str
    method: str
    options: Mapping[str, Any]
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
        name: on the command line.
        title: what it shows.
        source: the publication, and where in it.
        make: returns its runs.
        notes: what differs from what the authors did, and why.
        reading: how the paper reads data sets, as options of `--data` by the data set's name.
    """

    name: str
    title: str
    source: str
    make: Callable[[], list[Wanted]]
    notes: tuple[str, ...] = ()
    reading: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def figure(self) -> bool:
        """Whether a figure is drawn of its runs."""
        return self.name.startswith("figure")


_CORRECT = (
    "validation and test images are not augmented; the published code augments them on PACS and "
    "VLCS, and the validation half on CIFAR-10",
    "entropies are those of the whole training set, of the network as it is then; the published "
    "code takes those of batches during the last epoch, with z = 0 as ON (--faithful: of batches, "
    "with z = 0 as ON)",
)
_TINY = (
    "which of Tiny-ImageNet's 10,000 labelled images validate hung on the order of a folder on the "
    "authors' disk and cannot be had again: here of each class every second one does, the others "
    "test",
)
_COMPARED = (
    "of layer_folding as many rectifiers go as in the printed cell, those with the highest slopes; "
    "the slopes have an optimizer of their own, without which they hardly move in some recipes",
    "neither layer_folding's nor egp's rows have a public script; a network of egp that predicts a "
    "single class has collapsed, and its notes say so",
)
_FLOPS = (
    "the printed MFLOPs cannot come from merging: this network has 140.2 M multiply-accumulates at "
    "32×32, and merging two 3×3 convolutions into a 5×5 one adds to them (25 against 18 products a "
    "position), where the table has them fall to 36 % after one removal",
)
_RECTIFIERS = (
    "nothing is printed of these lines but the picture: at least 8 removals with a gain for GELU, "
    "LeakyReLU and PReLU, and a marginal loss for ReLU and SiLU",
)
_LOTTERY = (
    "the authors' recipe is not published: easier_resnet18_cifar10 stands in its place, for "
    "the dense network and after each removal",
    "how many blocks go in the rows of kl, random and hrank is not known: here one does",
    "how hrank, which ranks the channels of one layer, compares blocks of several stages is not "
    "known: here a rank counts relative to the mean of its stage",
)


def _of_table(name: str) -> list[Wanted]:
    """Return the runs of a table: one for each network, data set, method and variant."""
    groups: dict[tuple[str, str, str, str], list[Cell]] = {}
    for cell in published.table(name):
        groups.setdefault((cell.model, cell.data, cell.method, cell.variant), []).append(cell)
    found = []
    for (model, data, method, variant), cells in groups.items():
        if method == "dense":
            continue
        most = max(cell.removed or 0 for cell in cells)
        options = {**_removing(method, most), **parse_keywords(variant)}
        dense = groups.get((model, data, "dense", ""), [])
        found.append(Wanted(model, data, method, options, (*dense, *cells)))
    return found


def _removing(method: str, count: int) -> dict[str, Any]:
    """Return the options by which a method removes so many rectifiers, whatever that costs."""
    if method == "layer_folding":
        return {"top_k": count}
    return {"remove": count, **({"how": "identity"} if method == "easier" else {})}


def _table3() -> list[Wanted]:
    return [
        Wanted(
            "resnet18_cifar",
            "cifar10",
            "easier",
            _removing("easier", 8),
            tuple(published.table("table3")),
        )
    ]


def _figure3b() -> list[Wanted]:
    return [
        Wanted(
            "resnet18_cifar",
            "cifar10",
            "easier",
            {**_removing("easier", 16), "rectifier": name},
        )
        for name in RECTIFIERS
    ]


def _lottery() -> list[Wanted]:
    """Return the rows of Algorithms 1 and 2: blocks go at once, weights go back to the first."""
    found = []
    for cell in published.table("lottery"):
        options = parse_keywords(cell.variant) or {"criterion": "grasp", "score_on": "rewound"}
        if options.get("score_on") == "rewound":  # of weights that were not trained
            options["criterion"] += "?statistics=batch"
        count = cell.removed or 1
        options |= {"rewind": 0, "remove": count, "per_step": count}
        found.append(Wanted(cell.model, cell.data, cell.method, options, (cell,)))
    return found


def _source(name: str) -> str:
    return published.tables()[name].source


def _targets() -> Iterable[Target]:
    titles = {name: about.title for name, about in published.tables().items()}
    easier = partial(Target, reading=_EASIER_READS)
    notes = {
        "table1": (*_CORRECT, *_COMPARED, *_TINY),
        "table2": _CORRECT,
        "table3": (*_FLOPS, *_CORRECT),
        **{f"table{number}": _CORRECT for number in range(5, 12)},
        "table6": (*_CORRECT, *_TINY),
    }
    for name, told in notes.items():
        make = _table3 if name == "table3" else partial(_of_table, name)
        yield easier(name, titles[name], _source(name), make, told)
    paper = "Quétu, Liao and Tartaglione 2024, Figure 3"
    yield easier(
        "figure3a",
        "Accuracy of four networks on CIFAR-10 against removed rectifiers",
        f"{paper} (a), by Table 5",
        partial(_of_table, "table5"),
        _CORRECT,
    )
    yield easier(
        "figure3b",
        "Accuracy of ResNet-18 on CIFAR-10 with five rectifiers against removed ones",
        f"{paper} (b)",
        _figure3b,
        (*_RECTIFIERS, *_CORRECT),
    )
    yield Target("lottery", titles["lottery"], _source("lottery"), _lottery, _LOTTERY)


targets: dict[str, Target] = {target.name: target for target in _targets()}
"""What can be reproduced, by name."""


def find_target(name: str) -> Target:
    """Return a target; raises `NameNotFoundError` with the nearest names if there is none."""
    if name not in targets:
        raise unknown_name("table or figure", name, targets)
    return targets[name]


def chosen(
    target: Target,
    models: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
) -> list[Wanted]:
    """Return the runs of a target that some networks and methods leave, each dense cell once.

    Raises:
        NameNotFoundError: the target has no such network or method.
    """
    wanted = target.make()
    for what, asked, name in (("model", models, "model"), ("method", methods, "method")):
        known = list(dict.fromkeys(getattr(one, name) for one in wanted))
        for value in asked or ():
            if value not in known:
                raise unknown_name(f"{what} of {target.name}", value, known)
        wanted = [one for one in wanted if not asked or getattr(one, name) in asked]
    return _dense_once(wanted)


def _dense_once(wanted: Iterable[Wanted]) -> list[Wanted]:
    seen: set[tuple[Cell, ...]] = set()
    found = []
    for one in wanted:
        dense = tuple(cell for cell in one.cells if cell.method == "dense")
        own = tuple(cell for cell in one.cells if cell.method != "dense")
        kept = one.cells if dense not in seen else own
        seen.add(dense)
        found.append(Wanted(one.model, one.data, one.method, one.options, kept))
    return found
