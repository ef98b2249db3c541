"""The published tables recounted: whole numbers of hits, one table against another."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest

import shoal.methods  # noqa: F401  registers them
from shoal import published
from shoal.errors import NameNotFoundError
from shoal.search.method import methods
from shoal.targets import parse_keywords

TEST_SIZES = {
    "table5": 10_000,
    "table6": 5_000,
    "table7": 1_000,
    "table8": 1_073,
    "table9": 6_149,
    "table10": 1_880,
    "table11": 3_333,
}
TOTALS = {"resnet18": 17, "swin_t": 12, "mobilenet": 35, "vgg16_bn": 15}


def _is_share(accuracy: float, size: int) -> bool:
    """Whether a percentage with two digits is that of a whole number out of `size`."""
    shown = Decimal(str(accuracy))
    hits = int(shown * size / 100)
    shares = [Decimal(100 * n) / size for n in (hits, hits + 1)]
    return shown in [share.quantize(Decimal("0.01"), ROUND_HALF_UP) for share in shares]


@pytest.mark.parametrize(("name", "size"), TEST_SIZES.items())
def test_every_cell_is_a_whole_number_of_hits(name: str, size: int) -> None:
    cells = published.table(name)
    assert len(cells) == 79
    assert [c for c in cells if c.accuracy is None or not _is_share(c.accuracy, size)] == []


@pytest.mark.parametrize("name", TEST_SIZES)
def test_a_network_loses_one_rectifier_at_a_time(name: str) -> None:
    for model in dict.fromkeys(cell.model for cell in published.table(name)):
        cells = [cell for cell in published.table(name) if cell.model == model]
        total = next(n for key, n in TOTALS.items() if model.startswith(key[:9]))
        assert [cell.removed for cell in cells] == list(range(len(cells)))
        assert {cell.total for cell in cells} == {total}
        assert [cell.method for cell in cells] == ["dense"] + ["easier"] * (len(cells) - 1)


def test_table_1_agrees_with_the_appendix_but_for_three_cells() -> None:
    differ = {}
    for cell in published.table("table1"):
        if cell.method not in ("dense", "easier"):
            continue
        found = published.find(
            model=cell.model, data=cell.data, method=cell.method, removed=cell.removed
        )
        assert found is not None
        assert found.table in TEST_SIZES
        if found.accuracy != cell.accuracy:
            differ[cell.model, cell.data, cell.removed] = (cell.accuracy, found.accuracy)
    assert differ == {
        ("resnet18", "aircraft", 2): (70.33, 71.59),
        ("swin_t", "pacs", 0): (97.30, 97.10),
        ("mobilenet_v2", "pacs", 0): (95.50, 95.60),
    }


def test_the_dense_networks_of_tables_1_and_2_differ() -> None:
    (one,) = [c for c in published.table("table2") if c.method == "dense"]
    assert (one.accuracy, one.removed) == (92.60, 0)
    same = published.find(model=one.model, data=one.data, method="dense")
    assert same is not None
    assert same.accuracy == 92.47


def test_a_cell_is_found_by_the_names_of_the_command_line() -> None:
    found = published.find(
        model="torchvision:swin_t?num_classes=10", data="cifar10:/data", method="egp", removed=6
    )
    assert found is not None
    assert (found.accuracy, found.total, found.table) == (86.04, 12, "table1")
    two = published.find(
        model="shoal:resnet18_cifar",
        data="cifar10",
        method="easier",
        removed=8,
        variant="per_step=2",
    )
    assert two is not None
    assert two.accuracy == 92.26
    assert published.find(model="resnet18", data="cifar10", method="easier", removed=8) is None
    assert published.find(model="swin_t", data="cifar10", method="egp", removed=1) is None


@pytest.mark.parametrize(
    ("data", "known"),
    [("pacs:ROOT", True), ("pacs:ROOT?leave_out=sketch", False), ("dtd:ROOT?partition=2", False)],
)
def test_of_data_that_are_read_in_another_way_nothing_is_published(data: str, known: bool) -> None:
    found = published.find(model="torchvision:swin_t", data=data, method="dense")
    assert (found is not None) == known


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        ("", True),
        ("?num_classes=10&in_channels=3", True),
        ("?width=8", False),
        ("?num_classes=10&width=8", False),
    ],
)
def test_of_networks_with_other_layers_nothing_is_published(arguments: str, known: bool) -> None:
    kinds: tuple[tuple[str, dict[str, Any]], ...] = (
        ("resnet18_cifar", {"method": "dense"}),
        ("cifar_resnet56", {"method": "layer_pruning", "removed": 10, "variant": "criterion=cka"}),
    )
    for name, about in kinds:
        usual = published.find(model=name, data="cifar10", **about)
        assert usual is not None
        found = published.find(model=f"shoal:{name}{arguments}", data="cifar10", **about)
        assert found == (usual if known else None)


@pytest.mark.parametrize("given", [{"train_samples": 1000}, {"image_size": 16}])
@pytest.mark.parametrize("removed", [0, 8])
def test_of_runs_on_a_part_of_the_data_or_another_size_nothing_is_published(
    given: dict[str, int], removed: int
) -> None:
    about = {"model": "shoal:resnet18_cifar", "data": "cifar10:ROOT", "method": "easier"}
    about |= {"task": "classify", "score_on": "trained", **published.used()["easier"].options}
    assert published.find_run(about, removed) is not None
    assert published.find_run({**about, **given}, removed) is None


def test_a_figure_without_a_count_stands_for_every_count_if_it_is_alone() -> None:
    kind = {"model": "cifar_resnet32", "data": "cifar10", "method": "layer_pruning"}
    for removed in (1, 5):
        alone = published.find(**kind, removed=removed, variant="criterion=kl&rewind=0")
        assert alone is not None
        assert (alone.change, alone.counted) == (0.74, False)
    several = {"model": "resnet50", "data": "imagenet", "method": "layer_pruning"}
    assert published.find(**several, removed=3, variant="criterion=cka") is None
    by_evaluations = {"model": "resnet18_nopool", "data": "cifar10", "method": "snl"}
    assert published.find(**by_evaluations, removed=3) is None


@pytest.mark.parametrize("method", published.used())
def test_of_every_option_of_a_method_it_is_told_what_the_papers_did(method: str) -> None:
    known, own = published.used()[method], methods[method].Options
    assert sorted([*known.options, *known.free]) == sorted(f.name for f in fields(own))
    made = own.from_dict(known.options).to_dict()
    assert {name: made[name] for name in known.options} == known.options
    assert published.variants(method)


def test_a_published_variant_is_what_its_options_say() -> None:
    of_all = {"task": "classify", "score_on": "trained"}
    for method, known in published.used().items():
        own = {"method": method, **of_all, **known.options}
        for variant in published.variants(method):
            given = parse_keywords(variant)
            assert published.variant_of({**own, **given}) == variant
            for name in given:
                assert published.variant_of({**own, **given, name: "another"}) is None


def test_the_network_that_easier_found_has_91_56_when_trained_from_scratch() -> None:
    about = {"model": "shoal:resnet18_cifar", "data": "cifar10:ROOT", "method": "easier"}
    about |= {"task": "classify", "score_on": "trained", **published.used()["easier"].options}
    twin = published.find_run(about, 8, twin=True)
    assert twin is not None
    assert (twin.accuracy, twin.table) == (91.56, "ablation")
    result = published.find_run(about, 8)
    assert result is not None
    assert result.accuracy == 92.10
    assert published.find_run(about, 7, twin=True) is None
    assert published.find_run(about, 0, twin=True) is None
    for other in ({"per_step": 2}, {"how": "line"}, {"criterion": "random"}):
        assert published.find_run({**about, **other}, 8, twin=True) is None


def test_table_3_has_six_devices_and_work_that_rises_once() -> None:
    cells = published.table("table3")
    assert len(cells) == 54
    assert len({cell.device for cell in cells}) == 6
    work = {cell.removed: cell.mflops for cell in cells}
    assert [n for n in range(1, 9) if work[n] > work[n - 1]] == [6]  # type: ignore[operator]


def test_blocks_removed_by_cka_are_whole_shares_of_the_work() -> None:
    share = {32: 6.826, 44: 4.843, 56: 3.752, 110: 1.864}  # percent of the work of one block
    for cell in published.table("cka"):
        if cell.removed is not None and cell.macs_cut is not None:
            depth = int(cell.model.removeprefix("cifar_resnet"))
            assert cell.macs_cut == pytest.approx(cell.removed * share[depth], abs=0.03)


def test_lacoot_removes_the_second_block_of_each_stage() -> None:
    dense, lacoot = published.table("lacoot")[:2]
    assert dense.macs is not None
    assert lacoot.macs is not None
    assert dense.macs - lacoot.macs == pytest.approx(4 * 18_874_368, rel=1e-3)


def test_every_table_can_be_read_and_has_a_source() -> None:
    for name, about in published.tables().items():
        assert published.table(name), name
        assert about.title
        assert about.source
        assert about.name == name
    with pytest.raises(NameNotFoundError, match="did you mean 'table1'"):
        published.table("tabel1")


def test_reading_needs_no_pytorch() -> None:
    code = "import sys; from shoal import published; published.table('table1'); "
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
