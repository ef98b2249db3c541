"""Surgery as an expression, for tests that go on with the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.network import Network


def changed(operation: Callable[..., Any], network: Network, *args: Any, **options: Any) -> Network:
    """Change the network in place and return it."""
    operation(network, *args, **options)
    return network
