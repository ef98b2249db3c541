"""Going over data: the batches of a pass, and what one pass can gather."""

from __future__ import annotations

from shoal.passes.batches import Batches, Data, plain, set_epoch
from shoal.passes.observe import Observer, observe

__all__ = ["Batches", "Data", "Observer", "observe", "plain", "set_epoch"]
