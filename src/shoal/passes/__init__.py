"""Going over data: the batches of a pass, and what one pass can gather."""

from __future__ import annotations

from shoal.passes.batches import Batches, Data, Observer, observe, plain, set_epoch

__all__ = ["Batches", "Data", "Observer", "observe", "plain", "set_epoch"]
