from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from test_run_tables import record as whole
from test_run_tables import step

from shoal.report import RunRecord, energy_lines, energy_table, outcome_lines, read_run
from shoal.report.markdown import markdown as text


def figures(wh: float) -> dict[str, float]:
    return {"wh": wh, "co2_g": 0.475 * wh, "seconds": 60 * wh}


ENERGY: dict[str, Any] = {
    "training": {**figures(3.0), "steps": 2, "of_steps": 3},
    "epoch": {"dense": figures(2.0), "result": figures(1.6)},
    "inference": {"samples": 1000, "batch": 8, "dense": figures(0.5), "result": figures(0.25)},
    "training_time_saved_percent": 20.0,
    "estimated": True,
    "source": "codecarbon, estimated from the load: no counters can be read",
}


def record(**energy: Any) -> RunRecord:
    return whole(step(0), energy=energy, notes=())


def test_dense_stands_beside_the_result_with_units() -> None:
    table = text(energy_table(ENERGY))
    for words in ("energy (an estimate)", "an epoch of training", "2 min 0 s", "2 Wh", "1.6 Wh",
                  "0.95 g", "1.25 ×", "1,000 inferences, batch 8", "0.25 Wh",
                  "2.00 ×"):  # fmt: skip
        assert words in table
    assert "estimate" not in text(energy_table(ENERGY | {"estimated": False}))


def test_the_lines_say_how_the_figures_are_known() -> None:
    lines = energy_lines(ENERGY)
    assert "3 Wh and 1.42 g of CO2 in 3 min 0 s (2 of 3 trainings" in lines[0]
    assert "20 % less" in lines[1]
    assert "no counters can be read" in lines[2]
    assert outcome_lines(record(**ENERGY))[-3:] == lines
    assert energy_lines({}) == []


def test_what_is_not_known_is_not_shown() -> None:
    own = {"training": None, "epoch": None, "training_time_saved_percent": None}
    found = ENERGY | own
    assert "epoch" not in text(energy_table(found))
    assert "unknown" in energy_lines(found)[0]


def test_it_is_in_the_record_only_if_it_was_asked_for(tmp_path: Path) -> None:
    assert "energy" not in record().to_dict()
    assert record(**ENERGY).to_dict()["energy"] == ENERGY
    (tmp_path / "result.json").write_text(json.dumps(record(**ENERGY).to_dict()))
    assert read_run(tmp_path).energy == ENERGY
