"""How figures of a run are named and judged, wherever they are shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

TOP1 = "top-1"
"""The quality of a classifier."""


def quality_key(name: str) -> str:
    """Return the name of a quality as keys of JSON have it: "R²" is "r2", "mean ap" "mean_ap"."""
    plain = unicodedata.normalize("NFKC", name).lower()
    return re.sub(r"[^0-9a-z]+", "_", plain).strip("_") or "quality"


SLOWER = 1.02
"""How much longer than dense a result may take: less is the noise of a machine."""


def is_slower(ratio: Mapping[str, Any]) -> bool:
    """Whether a result certainly takes longer than dense, by more than 2 %.

    `ratio` is dense over result, as `Ratio.to_dict` has it. Its interval must leave out 1 as well:
    by its median alone, a network that is as fast as dense would be accused now and then. Nor does
    one that is not to be trusted accuse.
    """
    return bool(ratio.get("trusted", True) and ratio["median"] < 1 / SLOWER and ratio["high"] < 1)
