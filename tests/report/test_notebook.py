"""Results, scores, reports and blocks show tables in notebooks, and one line elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_run_tables import MERGE, record, step

import shoal
from captures import resnet20
from shoal.display import in_notebook
from shoal.measure import benchmark


def test_everything_that_people_print_is_one_line_and_has_a_table(tmp_path: object) -> None:
    network, images = resnet20(), torch.randn(8, 3, 32, 32)
    data = [(images, torch.arange(8) % 10)]
    shown = {
        "scores by entropy": shoal.score(network, data),
        "residual blocks": network.blocks,
        "rectifier sites": network.sites,
        "steps": record(step(0), step(1)),
        "0 merged": MERGE,
        "MACs": benchmark(network, images[:1], min_seconds=0.01, max_seconds=0.02),
    }
    for words, value in shown.items():
        html = value._repr_html_()
        assert words in html
        assert "<script" not in html
        if not isinstance(value, list):
            assert "\n" not in repr(value)
            assert len(repr(value)) < 300
    assert isinstance(network.blocks, list)
    assert repr(network.sites) == repr(list(network.sites))


def test_names_of_modules_are_text_in_a_notebook() -> None:
    scores = shoal.Scores("entropy", {"<b>": 0.5}, samples=1)
    assert "<b>" not in scores._repr_html_().replace("<b></b>", "")
    assert "&lt;b&gt;" in scores._repr_html_()


def test_a_library_of_notebooks_that_is_imported_makes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    outside = ModuleType("IPython")
    outside.get_ipython = lambda: None
    monkeypatch.setitem(sys.modules, "IPython", outside)
    assert not in_notebook()


@pytest.mark.long
def test_a_notebook_shows_progress_and_tables(tmp_path: Path) -> None:
    client = pytest.importorskip("nbclient")
    if importlib.util.find_spec("ipykernel") is None:
        pytest.skip("ipykernel is not installed")
    from nbformat.v4 import new_code_cell, new_notebook

    cells = [
        "import shoal, torch\n"
        "from shoal.search import ending\n"
        "ending.installed = lambda: ['eager']  # for a quick test\n"
        "batches = [(torch.randn(8, 1, 8, 8), torch.arange(8) % 10)] * 2\n"
        "result = shoal.compress(shoal.models.digits_resnet(), batches, batches, 'easier',\n"
        "                        max_drop=100.0, remove=1, epochs=1)\n"
        "result",
        "shoal.compress(shoal.models.digits_resnet(), batches, batches, 'easier', progress=False,\n"
        "               max_drop=100.0, remove=1, epochs=0).final.depth",
        "result.model.blocks",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    first, silent, blocks = (cell["outputs"] for cell in notebook["cells"])
    told = "".join(out["text"] for out in first if out["output_type"] == "stream")
    assert "step 1: fine-tune" in told
    assert "epoch 1/1" in told
    assert "top-1 validation" in first[-1]["data"]["text/html"]
    assert first[-1]["data"]["text/plain"].startswith("<shoal result: 1 of ")
    assert [out["output_type"] for out in silent] == ["execute_result"]
    assert "layer1.0" in blocks[-1]["data"]["text/html"]
