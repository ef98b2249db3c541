from __future__ import annotations

import random

import numpy as np
import torch

from shoal.seeds import derive_seed, preserved_rng, seed_everything

CPU = torch.device("cpu")


def test_a_seed_is_a_known_function_of_its_parts() -> None:
    # Written down, so that a change that would alter every run does not go unnoticed.
    assert derive_seed(0, "epoch", 0) == 2290956565560926021
    assert 0 <= derive_seed(123) < 2**63


def test_different_parts_give_different_seeds() -> None:
    parts = [(0,), (1,), ("0",), (0, 0), (0, "epoch", 1), (0, "epoch", 2), (0, "epoch1")]
    assert len({derive_seed(*p) for p in parts}) == len(parts)


def test_the_same_seed_gives_the_same_numbers() -> None:
    draws = []
    for _ in range(2):
        with preserved_rng(CPU):
            seed_everything(5, CPU)
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert draws[0] == draws[1]


def test_the_callers_random_state_comes_back() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with preserved_rng(CPU):
        seed_everything(5, CPU)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
