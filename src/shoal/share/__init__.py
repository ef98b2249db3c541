"""Giving a result to others: what its folder holds there, and the card that explains it."""

from __future__ import annotations

from shoal.share.card import card_of
from shoal.share.pushing import Pushed, push

__all__ = ["Pushed", "card_of", "push"]
