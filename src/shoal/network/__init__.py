"""What a model is: capture, sites, blocks."""

from __future__ import annotations

from shoal.network.blocks import Block
from shoal.network.capture import capture
from shoal.network.network import Network, Site
from shoal.network.plan import Operation, Plan
from shoal.network.raising import Opaque

__all__ = ["Block", "Network", "Opaque", "Operation", "Plan", "Site", "capture"]
