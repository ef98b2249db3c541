"""The core works without the extras: nothing of it imports them."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.long
def test_neither_searching_nor_reporting_imports_an_extra() -> None:
    code = (
        "import sys; import shoal.methods, shoal.report, shoal.cli.entry; "
        "print([m for m in sys.modules if m.startswith('shoal.extras')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
