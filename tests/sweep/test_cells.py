from __future__ import annotations

import re
from typing import Any

import pytest

import shoal.methods  # noqa: F401
from shoal import ShoalError
from shoal.sweep import cells_of

BASE = {"model": "shoal:digits_resnet", "data": "digits"}


def titles(**spec: Any) -> list[str]:
    return [cell.title for cell in cells_of({**BASE, **spec})]


def test_the_cells_are_all_combinations_of_the_lists() -> None:
    found = cells_of({**BASE, "method": ["easier", "egp"], "seed": [0, 1, 2], "epochs": 4})
    assert [cell.title for cell in found] == [
        f"{method}-digits_resnet-digits-seed{seed}"
        for method in ("easier", "egp")
        for seed in (0, 1, 2)
    ]
    assert all(cell.job.settings.search.epochs == 4 for cell in found)
    assert found[4].given == {"method": "egp", "seed": 1}


def test_a_file_without_lists_is_one_cell() -> None:
    assert titles(method="easier", seed=3) == ["easier-digits_resnet-digits-seed3"]


def test_an_option_that_takes_a_list_is_an_axis_only_as_a_list_of_lists() -> None:
    (one,) = cells_of({**BASE, "latency_batch": [1, 8]})
    assert one.job.settings.machine.batches == (1, 8)
    two = cells_of({**BASE, "latency_batch": [[1, 8], 4]})
    assert [cell.job.settings.machine.batches for cell in two] == [(1, 8), (4,)]


def test_parts_by_hand_are_matrices_over_what_all_have_in_common() -> None:
    parts = [{"method": "easier", "per_step": [1, 2]}, {"method": "egp", "epochs": 5}]
    found = cells_of({**BASE, "seed": [0, 1], "epochs": 1, "cells": parts})
    assert [(c.job.settings.name, c.job.settings.search.epochs) for c in found] == [
        *[("easier", 1)] * 4,
        *[("egp", 5)] * 2,
    ]
    assert found[3].title == "easier-digits_resnet-digits-seed1-per_step=2"


def test_what_is_excluded_is_left_out() -> None:
    rule = {"method": "egp", "seed": 1}
    found = titles(method=["easier", "egp"], seed=[0, 1], exclude=[rule])
    assert len(found) == 3
    assert "egp-digits_resnet-digits-seed1" not in found


def test_the_same_run_has_the_same_name_in_every_sweep() -> None:
    (alone,) = cells_of({**BASE, "method": "easier", "seed": 1, "epochs": 2})
    among = cells_of(
        {**BASE, "method": ["egp", "easier"], "seed": [0, 1], "epochs": 2, "hours": 3.0}
    )
    assert alone.name == among[3].name
    assert len({cell.digest for cell in among}) == 4


def test_a_default_that_is_spelt_out_changes_no_name_and_another_value_does() -> None:
    (plain,) = cells_of({**BASE, "method": "easier"})
    (spelt,) = cells_of({**BASE, "method": "easier", "seed": 0, "max_drop": 1, "remove": None})
    (other,) = cells_of({**BASE, "method": "easier", "max_drop": 2})
    assert plain.name == spelt.name
    assert plain.name != other.name


def test_what_differs_in_the_options_of_a_name_has_a_title_of_its_own() -> None:
    values = {"criterion": ["entropy", "entropy?pooling=batch"], "model": ["m.py:f?w=1", "m.py:f"]}
    found = cells_of({**BASE, "method": "easier", **values})
    assert len({cell.title for cell in found}) == len({str(cell) for cell in found}) == 4


def test_two_data_sets_in_folders_of_one_name_have_different_titles() -> None:
    data = ["cifar10:/data", "cifar100:/data/", "folder:/data", "cifar10:/a/cifar10", "digits"]
    data += ["pacs:/data?leave_out=photo", "my.py:load"]
    assert titles(method="easier", data=data) == [
        f"easier-digits_resnet-{name}-seed0"
        for name in (
            "cifar10-data", "cifar100-data", "folder-data", "cifar10", "digits",
            "pacs-data_leave_out=photo", "load",
        )
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["task", "device"])
def test_another_task_or_device_is_another_run(name: str) -> None:
    values = {"task": ["classify", "regress"], "device": ["cpu", "cuda"]}[name]
    (one, other) = cells_of({**BASE, "method": "easier", name: values})
    assert one.digest != other.digest
    if name == "task":
        assert one.digest == cells_of({**BASE, "method": "easier"})[0].digest


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"epoch": 1}, "unknown option 'epoch': did you mean 'epochs'"),
        ({"method": ["easier", "esier"]}, "unknown method 'esier': did you mean 'easier'"),
        (
            {"method": ["easier", "egp"], "per_step": 2},
            "the method 'egp' has no option per_step.*in the cell method: egp",
        ),
        ({"seed": []}, "seed is an empty list"),
        ({"seed": [0, 0]}, r"cells 1 and 2 \(seed: 0\) are the same run"),
        ({"hours": [1.0, 2.0]}, "the same run"),
        ({"seed": [0, 1], "exclude": [{"seed": 2}]}, "entry 1 of exclude leaves out no cell"),
        ({"exclude": [{"data": "digits"}]}, "leaves out every cell"),
        ({"cells": {"seed": 1}}, "cells must be a list of 'option: value' mappings"),
        ({"data": "didgits"}, "unknown data set 'didgits': did you mean 'digits'"),
        ({"method": "easier", "criterion": "entrpy"}, "unknown criterion 'entrpy'"),
        ({"model": [3]}, "model is 3: give a text"),
        ({"epochs": ["many"]}, "epochs is 'many': give a whole number"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_runs(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ShoalError) as raised:
        cells_of({**BASE, **spec})
    assert re.search(message, str(raised.value))
    assert "\n" not in str(raised.value)
