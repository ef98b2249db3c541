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
    "cli": 94,
    "data": 96,
    "extras": 94,
    "importance": 95,
    "measure": 90,
    "merge": 93,
    "methods": 95,
    "models": 95,
    "network": 93,
    "options": 97,
    "passes": 97,
    "report": 94,
    "runtimes": 92,
    "search": 94,
    "share": 94,
    "surgery": 95,
    "sweep": 90,
    "training": 94,
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
    rooms = {name for name in statements if name and not name.endswith(".py")}
    for room in sorted(rooms | FLOORS.keys()):
        share = 100.0 * covered[room] / statements[room] if statements[room] else 0.0
        floor = FLOORS.get(room)
        mark = "  has no floor" if floor is None else ""
        if floor is not None and share < floor:
            mark = f"  below its floor of {floor} %"
        low += bool(mark)
        print(f"{room:12s} {share:5.1f} %{mark}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
