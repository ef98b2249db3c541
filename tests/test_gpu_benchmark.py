"""The benchmark for a GPU, at toy size on the CPU: it resumes, and stops itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import script


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return script("benchmarks/gpu.py")


def toy(gpu: ModuleType, folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    gpu.main(["--toy", "--device", "cpu", "--batches", "1", "4", "--out", str(folder), *more])
    found = json.loads((folder / "gpu.json").read_text()) if (folder / "gpu.json").exists() else {}
    return found, (folder / "gpu.md").read_text()


@pytest.mark.slow
def test_it_ends_with_both_tables_and_goes_on_where_it_was(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, page = toy(gpu, tmp_path)
    search, latency = found["search shoal:digits_resnet"], found["latency shoal:digits_resnet"]
    assert search["removed"] == "2 of 13 rectifiers"
    assert {(row["type"], row["batch"]) for row in latency} == {
        (kind, batch) for kind in ("float32", "bfloat16") for batch in (1, 4)
    }
    timed = [row for row in latency if row["runtime"] == "eager"]
    assert all({"dense", "result"} == set(row["latency"]) for row in timed)
    assert "Missing" not in page
    assert "| shoal:digits_resnet | float32 | eager | 1 |" in page

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(gpu.shoal, "compress", again)
    monkeypatch.setattr(gpu, "latencies", again)
    assert toy(gpu, tmp_path)[0] == found


def test_no_part_is_begun_without_time(gpu: ModuleType, tmp_path: Path) -> None:
    found, page = toy(gpu, tmp_path, "--minutes", "0")
    assert not found
    assert "Missing, for want of time: search shoal:digits_resnet" in page
