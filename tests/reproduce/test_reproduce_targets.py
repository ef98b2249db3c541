from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

import shoal.methods  # noqa: F401  registers them
from shoal import published
from shoal.errors import NameNotFoundError, OptionError, ShoalError
from shoal.options.scale import at_budget
from shoal.reproduce import Target, find_target, plan, targets
from shoal.reproduce.plan import FAITHFUL
from shoal.reproduce.targets import RECTIFIERS, chosen

DATA = [
    f"{kind}:."  # a folder that is there: nothing is read
    for kind in ("cifar10", "tiny_imagenet", "pacs", "vlcs", "flowers102", "dtd", "aircraft")
]
OF_REMOVALS = ["table1", "table2", *(f"table{number}" for number in range(5, 12))]


def data_of(target: Target) -> list[str]:
    kinds = {one.data for one in target.make()}
    return [spec for spec in DATA if spec.partition(":")[0] in kinds]


@pytest.mark.parametrize("name", OF_REMOVALS)
def test_every_published_cell_is_read_once(name: str) -> None:
    read = Counter(cell for one in chosen(find_target(name)) for cell in one.cells)
    assert set(read) == set(published.table(name))
    assert set(read.values()) == {1}


@pytest.mark.parametrize("name", OF_REMOVALS)
def test_a_run_removes_as_many_as_its_last_cell(name: str) -> None:
    for one in find_target(name).make():
        most = max(cell.removed or 0 for cell in one.cells)
        assert one.options["top_k" if one.method == "layer_folding" else "remove"] == most
        assert {cell.method for cell in one.cells} <= {"dense", one.method}


@pytest.mark.parametrize("target", targets.values(), ids=list(targets))
def test_every_run_is_a_job_that_can_be_made(target: Target) -> None:
    found = plan(target, data_of(target), budget=0.1, seeds=(0, 1))
    assert not found.missing
    assert [len(cells) for cells in found.cells] == [2] * len(found.wanted)
    for one, cells in zip(found.wanted, found.cells, strict=True):
        for seed, cell in enumerate(cells):
            search = cell.job.settings.search
            assert cell.job.model.partition(":")[2] == one.model
            own_split = one.data == "cifar10" and target.name != "lottery"
            assert cell.job.data == f"{one.data}:." + "?split=random" * own_split
            assert cell.job.settings.name == one.method
            assert search.seed == seed
            assert search.max_drop == 100.0  # nothing but the count ends it
            assert not search.move_padding  # nothing goes by the clock
            assert search.dense_epochs == search.epochs


def test_training_is_that_of_the_paper_and_the_budget_scales_it() -> None:
    cases = {
        ("table5", "swin_t"): (160, 128, "sgd", 1e-3, (0.5, 0.75)),
        ("table6", "vgg16_bn"): (160, 128, "sgd", 1e-2, (0.5, 0.75)),
        ("table7", "resnet18_cifar"): (30, 16, "sgd", 1e-3, (0.8,)),
        ("table9", "resnet18"): (50, 16, "adam", 1e-4, ()),
    }
    for (name, model), (epochs, *others) in cases.items():
        target = find_target(name)
        for budget in (1.0, 0.1, 0.001):
            (cells,) = plan(target, data_of(target), budget=budget, models=[model]).cells
            job = cells[0].job
            recipe, search = job.settings.recipe, job.settings.search
            assert search.epochs == search.dense_epochs == epochs
            assert at_budget(search, search.budget or 1.0).epochs == max(1, round(budget * epochs))
            told = [job.reading.batch_size, recipe.optimizer, recipe.lr, recipe.milestones]
            assert told == others
            assert job.pretrained == (model != "resnet18_cifar")


def test_the_options_of_all_runs_count_over_those_of_the_target() -> None:
    target = find_target("table2")
    options = {"move_padding": True, "budget": 0.25}
    found = plan(target, ["cifar10:."], budget=0.5, options=options)
    searches = [cells[0].job.settings.search for cells in found.cells]
    assert {(one.move_padding, one.budget) for one in searches} == {(True, 0.25)}
    assert found.budget == 0.25  # what is said of the runs is what they have
    found = plan(target, ["cifar10:."], budget=0.5, options={"budget": None})
    assert (found.budget, found.cells[0][0].job.settings.search.budget) == (1.0, None)


def test_a_split_that_the_user_chose_is_kept() -> None:
    for target, given, read in (
        ("table2", "cifar10:.", "cifar10:.?split=random"),
        ("table2", "cifar10:.?split=stratified", "cifar10:.?split=stratified"),
        ("table2", "cifar10=cifar10:.", "cifar10:.?split=random"),
        ("table2", "cifar10=folder:.", "folder:."),
        ("lottery", "cifar10:.", "cifar10:."),
    ):
        found = plan(find_target(target), [given])
        assert {cells[0].job.data for cells in found.cells} == {read}


@pytest.mark.parametrize("target", targets.values(), ids=list(targets))
def test_where_the_split_of_the_paper_cannot_be_had_a_note_says_so(target: Target) -> None:
    told = any("Tiny-ImageNet" in note for note in target.notes)
    assert told == ("tiny_imagenet" in {one.data for one in target.make()})


def test_table_2_removes_several_a_round() -> None:
    found = plan(find_target("table2"), ["cifar10:."])
    options = [cells[0].job.settings.options for cells in found.cells]
    assert [one.per_step for one in options] == [2, 4, 8]
    assert {one.how for one in options} == {"identity"}
    assert {cells[0].job.settings.search.remove for cells in found.cells} == {8}
    assert [len(one.cells) for one in found.wanted] == [2, 1, 1]  # dense is read once


def test_the_lottery_removes_at_once_and_rewinds() -> None:
    found = plan(find_target("lottery"), ["cifar10:."])
    for one, cells in zip(found.wanted, found.cells, strict=True):
        settings = cells[0].job.settings
        assert settings.search.remove == settings.options.per_step == (one.cells[0].removed or 1)
        assert settings.search.rewind == 0
        at_start = settings.search.score_on == "rewound"
        assert ("statistics=batch" in settings.options.criterion) == at_start
    named = [cells[0].job.settings.options.criterion for cells in found.cells]
    assert named[10:13] == ["kl", "random", "hrank"]


def test_faithful_entropies_are_of_batches() -> None:
    target = find_target("table1")
    for faithful in (False, True):
        found = plan(target, ["pacs:."], methods=["easier"], faithful=faithful)
        criteria = {cells[0].job.settings.options.criterion for cells in found.cells if cells}
        assert criteria == {FAITHFUL if faithful else "entropy"}


def test_weights_of_ones_own_take_the_place_of_pretrained_ones() -> None:
    target = find_target("table5")
    found = plan(target, ["cifar10:."], models=["swin_t"], checkpoints={"swin_t": "s.pth"})
    assert (found.cells[0][0].job.checkpoint, found.cells[0][0].job.pretrained) == ("s.pth", False)


def test_what_has_no_data_is_told_with_where_it_goes() -> None:
    found = plan(find_target("table1"), ["pacs:."])
    assert list(found.missing) == [
        "cifar10", "tiny_imagenet", "vlcs", "flowers102", "dtd", "aircraft",
    ]  # fmt: skip
    for kind, line in found.missing.items():
        assert f"give --data {kind}:data/{kind}" in line.replace("\\", "/")
    assert "VLCS.tar.gz" in found.missing["vlcs"]
    assert sum(map(bool, found.cells)) == sum(one.data == "pacs" for one in found.wanted)


def test_without_torchvision_it_is_said_where_data_are_read_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    line = plan(find_target("lottery"), ()).missing["cifar10"].replace("\\", "/")
    assert "pip install 'shoal[torchvision]'" in line
    assert line.endswith("then give --data cifar10:data/cifar10")


def test_wrong_plans_are_one_line() -> None:
    table7, table1 = find_target("table7"), find_target("table1")
    for words, expected in (
        (
            {"data": ["cifar10:."]},
            "table7 has no runs on 'cifar10': give pacs, or write pacs=cifar10:.",
        ),
        ({"data": ["pacs"]}, "write 'pacs:FOLDER'"),
        ({"data": ["pacs:none"]}, r"the folder 'none' does not exist: get PACS\.zip"),
        ({"data": ["pacs:.", "pacs:.."]}, "given twice"),
        ({"data": ["pacs=digit"]}, "did you mean 'digits'"),
        ({"data": ["pacs=folder:none"]}, "none"),
        ({"data": ["pacss:/a"]}, "did you mean 'pacs'"),
        ({"data": ["pacs:."], "options": {"lr": [0.1, 0.2]}}, "one value"),
        ({"data": ["pacs:."], "options": {"method": "egp"}}, "the target decides it"),
        ({"data": ["pacs:."], "options": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"models": ["resnet18"]}, "did you mean 'resnet18_cifar'"),
        ({"checkpoints": {"swin": "f"}}, "did you mean 'swin_t'"),
    ):
        with pytest.raises(ShoalError, match=expected):
            plan(table7, **words)
    with pytest.raises(NameNotFoundError, match="did you mean 'easier'"):
        plan(table1, methods=["easer"])
    with pytest.raises(NameNotFoundError, match="did you mean 'table1"):
        find_target("tabel1")
    for budget in (0.0, 1.5, "a tenth", True, [0.1, 0.2]):
        with pytest.raises(OptionError, match="budget"):
            plan(table7, budget=budget)  # type: ignore[arg-type]
        with pytest.raises(OptionError, match="budget"):
            plan(table7, options={"budget": budget})
    with pytest.raises(OptionError, match="seed"):
        plan(table7, seeds=(1, 1))


def test_figure_3b_swaps_the_rectifiers() -> None:
    found = plan(find_target("figure3b"), ["cifar10:."])
    searches = [cells[0].job.settings.search for cells in found.cells]
    assert [one.rectifier for one in searches] == list(RECTIFIERS)
    assert {one.remove for one in searches} == {16}


def test_other_data_may_take_the_place_of_a_tables() -> None:
    found = plan(find_target("table5"), ["cifar10=digits"], models=["resnet18_cifar"])
    (cells,) = found.cells
    assert (cells[0].job.data, found.wanted[0].data) == ("digits", "cifar10")
    assert cells[0].job.settings.recipe.lr == 0.1  # still that of CIFAR-10


def test_runs_that_fetch_their_data_need_not_have_them_yet(tmp_path: Path) -> None:
    target = find_target("table2")
    root = f"cifar10:{tmp_path / 'none'}"
    advice = "cifar-10-python.tar.gz.*set download: true in the file of --config"
    with pytest.raises(ShoalError, match=advice):
        plan(target, [root])
    assert any(plan(target, [root], options={"download": True}).cells)
    assert re.search(advice, plan(target, ()).missing["cifar10"])
