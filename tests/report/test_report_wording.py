from __future__ import annotations

import pytest

from shoal.report.table import UNITS, amount, duration, percent, points


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1 k"), (66170, "66.17 k"), (1_820_000_000, "1.82 G")],
)
def test_counts_have_four_digits_and_a_prefix(number: int, text: str) -> None:
    assert amount(number) == text


def test_figures_carry_their_unit() -> None:
    assert percent(97.456) == "97.46 %"
    assert percent(None) == "–"
    assert points(-0.5) == "-0.50 points"
    assert points(-1e-9) == "+0.00 points"
    assert UNITS["ms"](12.345) == "12.3 ms"
    assert UNITS["×"](1.5) == "1.50 ×"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.9, "59.9 s"), (60, "1 min 0 s"), (7500, "2 h 5 min")]
)
def test_times_are_read_easily(seconds: float, text: str) -> None:
    assert duration(seconds) == text
