"""What a model is: capture, sites, blocks, stretches."""

from __future__ import annotations

from shoal.network.blocks import Block
from shoal.network.capture import capture
from shoal.network.graph import Site
from shoal.network.network import Network, Operation, Plan
from shoal.network.raising import Opaque
from shoal.network.stretches import Stretch

__all__ = ["Block", "Network", "Opaque", "Operation", "Plan", "Site", "Stretch", "capture"]
