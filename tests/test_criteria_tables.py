"""The benchmark's tables: measured beside published, as Markdown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import script

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return script("benchmarks/criteria_tables.py")


def row(blocks: int, drop: float, test: float | None, share: float) -> dict[str, Any]:
    return {
        "removed": blocks, "drop_val": drop, "drop_test": test,
        "macs_percent": share * blocks, "speedup": 1.0 + 0.1 * blocks,
    }  # fmt: skip


def run(*drops: float, share: float, offset: float = 0.0, latency: bool = True) -> dict[str, Any]:
    timed = {"ratio": {"median": 1.5}, "dense": {"median_ms": 4.0}, "smaller": {"median_ms": 2.0}}
    rows = [row(n, d, d + offset, share) for n, d in enumerate([0.0, *drops])]
    return {
        "rows": rows,
        "latency": [{"removed": n, "eager, batch 1": timed} for n in (1, 2)] if latency else [],
        "seconds_by_stage": {"steps": 2, "score": 4.0, "fine-tune": 20.0, "evaluate": 6.0},
    }


def options(**changes: Any) -> argparse.Namespace:
    base = {
        "method": "layer_pruning", "model": "shoal:cifar_resnet32", "train_samples": 100,
        "dense_epochs": 3, "epochs": 1,
        "distill": 0.7, "lr": 0.02, "precision": "bf16", "score_samples": 10, "remove": 3,
        "per_step": 1,
        "latency_batches": [1], "latency_steps": [], "split_test": True, "val_samples": 50,
        "checkpoint": None,
    }  # fmt: skip
    return argparse.Namespace(**base | changes)


def cells(text: str, first: str) -> list[list[str]]:
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row[1:] for row in rows if row[0] == first]


FOUND = {
    "cka": {
        "0": run(0.2, 0.6, 1.4, share=6.826, offset=0.1),
        "1": run(0.4, 1.2, 0.8, share=6.826, offset=0.1),
    },
    "random": {"0": run(2.0, share=6.826, latency=False)},
    "nothing": {"0": run(-0.2, 0.1, share=0.0)},
}


def test_blocks_within_a_point_end_at_the_first_that_is_not(tables: ModuleType) -> None:
    runs = FOUND["cka"]
    assert [tables.passed(run["rows"], 1.0) for run in runs.values()] == [2, 1]
    assert tables.passed(runs["0"]["rows"], 0.1) == 0


def test_measured_figures_are_means_over_seeds(tables: ModuleType) -> None:
    text = tables.table(FOUND, options())
    own, speed, seconds = cells(text, "cka")
    assert own == ["2", "-0.30 ± 0.14 (-0.40)", "-0.90 ± 0.42 (-1.00)", "-1.10 ± 0.42 (-1.20)",
                   "1.5 (1 to 2)"]  # fmt: skip
    assert speed == ["within 1.0 point", "1.50 to 1.50 (4 → 2 ms)", "–"]
    assert seconds == ["2.0", "10.0", "3.0"]
    assert cells(text, "random")[0] == ["1", "-2.00 (-2.00)", "–", "–", "0.0 (0 to 0)"]
    assert cells(text, "nothing")[0] == ["1", "+0.20 (+0.20)", "-0.10 (-0.10)", "–", "–"]
    assert len(cells(text, "nothing")) == 2  # and its seconds: it has no speed-up
    assert cells(text, "random")[1] == ["within 1.0 point", "–", "–"]


def test_published_figures_stand_beside_the_nearest_measured(tables: ModuleType) -> None:
    text = tables.table(FOUND, options())
    (three,) = cells(text, "GraSP at init, 3 blocks")
    assert three == ["20.5", "+0.34", "-1.20 ± 0.42 (20.5 %)", "–"]
    (far,) = cells(text, "CKA (Pons et al. 2024)")
    assert far == ["54.6", "+0.05", "–", "–"]
    deeper = {"cka": {"0": run(*[0.1 * n for n in range(21)], share=3.752)}}
    text = tables.table(deeper, options(model="shoal:cifar_resnet56?num_classes=10", remove=21))
    assert ["60.0", "+0.78", "-1.50 (60.0 %)"] in cells(text, "CKA")
    assert ["75.0", "+0.08", "-1.90 (75.0 %)"] in cells(text, "CKA")


def test_no_latency_batches_give_no_table(tables: ModuleType) -> None:
    text = tables.table(FOUND, options(latency_batches=[], model="shoal:cifar_resnet20"))
    assert "last network within" not in text
    assert "Published" not in text


def test_networks_asked_for_are_timed_too(tables: ModuleType) -> None:
    text = tables.table(FOUND, options(latency_steps=[2]))
    assert cells(text, "cka")[2] == ["2 gone", "1.50 to 1.50 (4 → 2 ms)", "–"]
    assert cells(text, "random")[2] == ["2 gone", "–", "–"]


def test_of_many_steps_some_have_a_column(tables: ModuleType) -> None:
    assert tables._shown(options(remove=8)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert tables._shown(options(remove=20)) == [3, 6, 9, 12, 15, 18, 20]
    assert tables._shown(options(remove=20, per_step=2)) == [4, 8, 12, 16, 20]
    assert tables._shown(options(remove=5, per_step=2)) == [2, 4, 5]


def test_all_tables_have_as_many_cells_as_heads(tables: ModuleType) -> None:
    lines = tables.table(FOUND, options()).splitlines()
    for number, line in enumerate(lines):
        if line.startswith("|---"):
            columns = line.count("|")
            assert lines[number - 1].count("|") == columns
            body = number + 1
            while body < len(lines) and lines[body].startswith("|"):
                assert lines[body].count("|") == columns
                body += 1


def test_the_script_tells_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        import criteria
    finally:
        sys.path.remove(str(FOLDER))
    given = criteria.parse(["--data", "digits", "--remove", "2", "--split-test"])
    assert given.remove == 2
    assert given.split_test
    with pytest.raises(SystemExit):
        criteria.parse(["--help"])
    assert "--score-samples" in capsys.readouterr().out
