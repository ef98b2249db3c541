"""The command line: `shoal demo`, `inspect`, `compress`, `benchmark`, `report`.

Nothing here imports PyTorch before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from shoal.cli.entry import main

__all__ = ["main"]
