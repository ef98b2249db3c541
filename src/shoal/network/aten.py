"""ATen's functions of tensors, by name: none touches files, processes or memory but its own."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ATEN"]

ATEN = frozenset(Path(__file__).with_name("aten.txt").read_text(encoding="utf-8").split())
