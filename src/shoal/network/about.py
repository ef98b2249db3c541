"""What goes with a network and computes nothing: labels, normalisation, task, figures."""

from __future__ import annotations

import json
from typing import Any

from shoal.errors import DamagedError, PlanError
from shoal.network.call_form import TensorSpec
from shoal.network.network import Network
from shoal.network.saved_form import About
from shoal.schema import conform


def described(network: Network) -> dict[str, Any]:
    """Return a network's `meta` as JSON values; `PlanError` if a key of it holds what it may not.

    `shoal.network.saved_form.About` has the keys that are known; any other one is the user's.
    """
    try:
        meta: dict[str, Any] = json.loads(json.dumps(network.meta, allow_nan=False))
        conform(About, meta)
    except (TypeError, ValueError, DamagedError) as error:
        raise PlanError(f"the network's meta cannot be written: {error}: correct it") from error
    return meta


def sample_shape(network: Network) -> list[Any]:
    """Return the shape of one sample at capture; of several inputs, a list of them."""
    leaves = network.inputs.leaves
    shapes = [list(leaf.shape[1:]) for leaf in leaves if isinstance(leaf, TensorSpec)]
    return shapes[0] if len(shapes) == 1 else shapes
