"""What a network is called with: tensors are found in every kind of mapping."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch

from shoal.network.inputs import as_call, batch_size, map_tensors, tensors_of


class Words(dict):  # type: ignore[type-arg]
    """A dictionary that PyTorch does not know, as libraries have them."""


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict, MappingProxyType, Words])
def test_tensors_are_found_in_every_kind_of_mapping(kind: Callable[..., Any]) -> None:
    ids, mask = torch.zeros(3, 5), torch.ones(3, 5)
    inputs = kind({"ids": ids, "inner": [kind({"mask": mask, "name": "x"})]})
    assert all(a is b for a, b in zip(tensors_of(inputs), (ids, mask), strict=True))
    assert batch_size(inputs) == 3
    halved = map_tensors(lambda tensor: tensor[:1], inputs)
    assert halved["ids"].shape == halved["inner"][0]["mask"].shape == (1, 5)
    assert halved["inner"][0]["name"] == "x"
    assert as_call(halved)[1].keys() == {"ids", "inner"}
    assert ids.shape == (3, 5)
