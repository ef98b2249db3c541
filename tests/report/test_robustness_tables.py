from __future__ import annotations

from dataclasses import replace

from shoal.extras.robustness import Robustness
from shoal.report import robustness_lines, robustness_table
from shoal.report.table import Table

DENSE = Robustness(90.0, 55.0, {"fog": (80.0, 60.0), "snow": (50.0, 30.0)}, (1, 5), 100, 3)
RESULT = Robustness(89.0, 54.0, {"fog": (81.0, 63.0), "snow": (46.0, 26.0)}, (1, 5), 100, 3)


def rows(table: Table) -> dict[str, list[str]]:
    return {cells[0]: cells[1:] for cells in table.texts()}


def test_each_corruption_is_a_row_of_means_with_the_change() -> None:
    table = rows(robustness_table({"dense": DENSE, "result": RESULT}))
    assert table == {
        "none": ["90.00 %", "89.00 %", "-1.00 points"],
        "fog": ["70.00 %", "72.00 %", "+2.00 points"],
        "snow": ["40.00 %", "36.00 %", "-4.00 points"],
        "mean of all": ["55.00 %", "54.00 %", "-1.00 points"],
    }


def test_one_network_has_no_change() -> None:
    assert rows(robustness_table({"network": DENSE}))["fog"] == ["70.00 %"]


def test_the_lines_say_what_the_strengths_are() -> None:
    lines = robustness_lines({"dense": DENSE}, part="test", image_size=32)
    assert lines[0] == "100 test images, severities 1, 5, seed 3"
    assert "strengths of ImageNet-C: on these of 32 pixels they are stronger" in lines[1]
    large = robustness_lines({"dense": DENSE}, part="validation", image_size=224)
    assert "stronger" not in large[1]


def test_a_quality_without_a_unit_is_not_in_percent() -> None:
    own = replace(DENSE, quality_name="score", quality_unit="")
    table = robustness_table({"network": own})
    assert rows(table)["fog"] == ["70.00"]
    assert table.title.startswith("score on corrupted images")
