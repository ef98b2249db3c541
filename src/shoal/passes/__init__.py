"""Going over data: the batches of a pass, and what one pass can gather."""

from __future__ import annotations

from shoal.passes.observe import Observer, observe

__all__ = ["Observer", "observe"]
