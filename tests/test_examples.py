"""Each example is short, imports what its reader has, and runs."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

import small_runs
from registries import keep_registries

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
SAYS = {
    "compress_a_model": "rectifiers removed",
    "load_a_result": "13 rectifiers in the dense network",
    "merge_and_export": "digits.pt2",
    "own_criterion": "10 of 13 rectifiers left",
    "own_method": "2 of 13 rectifiers removed",
    "own_training": "blocks removed",
}


@pytest.mark.long
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keep_registries(monkeypatch)
    small_runs.untimed_commands(monkeypatch)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert SAYS[path.stem] in capsys.readouterr().out


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_imports_only_shoal_and_torch(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    modules: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    foreign = {name for name in modules if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name for name in foreign if name.split(".")[0] != "torch"} == {"shoal"}
