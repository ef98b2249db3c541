"""Reading the tables: their cells, and finding one of them."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any, get_type_hints

from shoal.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One published result. What its table does not tell is None.

    Attributes:
        table: the table's name here.
        model: the network by shoal's name, or by torchvision's ("resnet18_cifar", "swin_t").
        data: the data set by shoal's name.
        method: the method by shoal's name where shoal has it; "dense" before any removal.
        variant: how it differs from the method's usual form, as options of shoal where they say it
            ("per_step=2").
        removed: how many rectifiers or blocks are gone, as the table's `unit` says.
        total: how many there were.
        accuracy: top-1 on test data, percent.
        change: of the accuracy against dense, points.
        macs: multiply-accumulates of one sample.
        mflops: millions of floating-point operations as printed.
        macs_cut: how much less work than dense, percent.
        relus: evaluations of rectifiers per sample.
        base: how many of them the dense network has.
        latency_ms: of one inference, milliseconds.
        speedup: latency of dense over this one's, in PyTorch.
        speedup_tensorrt: the same in TensorRT.
        training_speedup: duration of dense training over this one's.
        minutes: duration of the whole training.
        device: where it was timed.
    """

    table: str
    model: str
    data: str
    method: str
    variant: str = ""
    removed: int | None = None
    total: int | None = None
    accuracy: float | None = None
    change: float | None = None
    macs: int | None = None
    mflops: float | None = None
    macs_cut: float | None = None
    relus: int | None = None
    base: int | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    speedup_tensorrt: float | None = None
    training_speedup: float | None = None
    minutes: float | None = None
    device: str = ""

    @property
    def counted(self) -> bool:
        """Whether it is told how much is gone: of layers, or of evaluations of rectifiers."""
        dense = self.method == "dense"
        return dense or self.removed is not None or self.relus is not None


@dataclass(frozen=True)
class Table:
    """What a table is about.

    Attributes:
        name: its name here, "table1" or "lottery".
        title: what it shows.
        unit: of what is removed, "rectifiers" or "blocks"; empty where that is not told.
        source: the publication, and where in it.
    """

    name: str
    title: str
    unit: str
    source: str


@functools.cache
def tables() -> dict[str, Table]:
    """Return all tables by name, those that come first in `find` first."""
    return {row["table"]: Table(*row.values()) for row in rows("tables")}


@functools.cache
def table(name: str) -> list[Cell]:
    """Return the cells of a table in their printed order, networks one after the other.

    Raises:
        NameNotFoundError: there is no such table.
    """
    if name not in tables():
        raise unknown_name("published table", name, tables())
    return [Cell(**_typed(row), table=name) for row in rows(name)]


_PUBLISHED_SPLIT = "split=random"  # of CIFAR, as in Quétu et al. 2024
_SAME_LAYERS = {"num_classes", "in_channels", "in_chans", "weights", "pretrained"}
"""Arguments of a model that leave its layers as the papers have them."""


def find(
    *, model: str, data: str, method: str, removed: int | None = None, variant: str = ""
) -> Cell | None:
    """Return the first published accuracy, or its change, of a run of this kind; None without one.

    `model` and `data` may be as the command line takes them ("torchvision:swin_t?num_classes=10",
    "cifar10:ROOT"). Of data that are read in another way ("pacs:ROOT?leave_out=sketch"), and of
    models with arguments that change their layers ("?width=8"), nothing is published. With nothing
    removed it is the dense network, whatever the method. Where a paper contradicts itself, the
    table of single removals is believed. A figure of which it is not told how much was removed
    stands for every count if it is the only one of its kind.
    """
    if removed == 0:
        method = "dense"
    place, _, reading = data.partition("?")
    if reading not in ("", _PUBLISHED_SPLIT):
        return None
    wanted = (_plain(model), place.partition(":")[0], method, variant)
    found = [
        cell
        for name in tables()
        for cell in table(name)
        if (cell.model, cell.data, cell.method, cell.variant) == wanted
        and (cell.accuracy is not None or cell.change is not None)
    ]
    same = (cell for cell in found if method == "dense" or cell.removed == removed)
    alone = found[0] if len(found) == 1 and not found[0].counted else None
    return next(same, alone)


def _plain(model: str) -> str:
    """Return a model's name without its library; "" for one whose arguments change its layers."""
    name, _, arguments = model.partition("?")
    if {part.partition("=")[0].strip() for part in arguments.split("&")} - {"", *_SAME_LAYERS}:
        return ""
    library, _, rest = name.partition(":")
    return rest if library in ("shoal", "torchvision", "timm") else name


def rows(name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file of this folder as texts, by column."""
    text = resources.files(__package__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _typed(row: dict[str, str]) -> dict[str, Any]:
    """Return a row's values by the types of the cell's fields, without those that are empty."""
    return {name: _types()[name](text) for name, text in row.items() if text}


@functools.cache
def _types() -> dict[str, Callable[[str], Any]]:
    hints = get_type_hints(Cell)
    kinds: dict[Any, Callable[[str], Any]] = {int | None: int, float | None: float, str: str}
    return {field.name: kinds[hints[field.name]] for field in fields(Cell)}
