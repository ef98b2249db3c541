"""Change a file of shoal's as somebody would who computes its checksum anew."""

from __future__ import annotations

import json
from pathlib import Path

from shoal.sealed import KEY, sealed_text


def write_resealed(path: Path, text: str) -> None:
    """Write the text of a JSON file with the checksum of what it holds now; other text as it is."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict) and KEY in values:
        del values[KEY]
        text = sealed_text(values)
    path.write_text(text)
