"""Check the coverage of each room of src/shoal against its floor, from coverage.json.

coverage json && python .ci/coverage.py
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

# Percent of statements. Raise a floor when a room is well above it; never lower one.
FLOORS = {
    "cli": 80,
    "data": 85,
    "extras": 75,
    "importance": 90,
    "measure": 85,
    "merge": 90,
    "methods": 90,
    "models": 85,
    "network": 90,
    "options": 90,
    "passes": 90,
    "report": 85,
    "runtimes": 80,
    "search": 90,
    "surgery": 90,
    "tasks": 80,
    "training": 85,
}


def main() -> int:
    files = json.loads(Path("coverage.json").read_text(encoding="utf-8"))["files"]
    covered, statements = defaultdict(int), defaultdict(int)
    for name, facts in files.items():
        parts = Path(name).parts
        room = parts[parts.index("shoal") + 1] if "shoal" in parts else ""
        covered[room] += facts["summary"]["covered_lines"]
        statements[room] += facts["summary"]["num_statements"]
    low = 0
    for room, floor in FLOORS.items():
        share = 100.0 * covered[room] / statements[room] if statements[room] else 100.0
        mark = "" if share >= floor else f"  below its floor of {floor} %"
        low += bool(mark)
        print(f"{room:12s} {share:5.1f} %{mark}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
