"""Agreement of outputs, and random inputs."""

from __future__ import annotations

import copy
import json
import re
from math import inf, nan

import pytest
import torch
from torch import nn

from shoal.errors import ConfigError
from shoal.measure import compare_outputs, random_like


def gives(output: object):
    return lambda x: output


ONE = [torch.zeros(1)]


def test_a_network_agrees_with_its_copy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    inputs = [torch.randn(2, 3, 6, 6), torch.randn(5, 3, 6, 6)]
    found = compare_outputs(model, copy.deepcopy(model), inputs)
    assert found.identical
    assert (found.max_abs_error, found.max_rel_error, found.n_inputs) == (0.0, 0.0, 2)
    assert json.loads(json.dumps(found.to_dict()))["identical"] is True
    assert model.training


def test_errors_are_the_largest_over_inputs_and_outputs() -> None:
    a = {"x": torch.tensor([1.0, -4.0]), "y": [torch.tensor([10.0])]}
    b = {"x": torch.tensor([1.0, -5.0]), "y": [torch.tensor([12.0])]}
    found = compare_outputs(gives(a), gives(b), ONE)
    assert found.max_abs_error == 2.0
    assert found.max_rel_error == 0.25  # 1 of 4 beats 2 of 10
    assert not found.identical


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([nan, 1.0], [nan, 1.0], 0.0),
        ([nan, 1.0], [1.0, nan], inf),
        ([nan, 1.0], [2.0, 1.0], inf),
        ([inf, 1.0], [inf, 1.0], 0.0),
        ([inf, 1.0], [-inf, 1.0], inf),
        ([inf, 1.0], [inf, 1.5], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([], [], 0.0),
    ],
)
def test_what_is_no_number(a: list[float], b: list[float], error: float) -> None:
    found = compare_outputs(gives(torch.tensor(a)), gives(torch.tensor(b)), ONE)
    assert found.max_abs_error == error
    assert found.max_rel_error == error
    assert found.identical == (error == 0.0)


def test_relative_to_nothing_is_infinite() -> None:
    found = compare_outputs(gives(torch.zeros(2)), gives(torch.full((2,), 1e-9)), ONE)
    assert found.max_rel_error == inf


def test_identical_means_every_bit() -> None:
    found = compare_outputs(gives(torch.tensor([0.0])), gives(torch.tensor([-0.0])), ONE)
    assert found.max_abs_error == 0.0
    assert not found.identical


@pytest.mark.parametrize(
    ("b", "text"),
    [
        (torch.zeros(3), r"shape \(2,\) in one, \(3,\) in the other"),
        ((torch.zeros(2),), "structure"),
        (5, "output 0 is tensor"),
    ],
)
def test_outputs_of_another_form_do_not_agree(b: object, text: str) -> None:
    found = compare_outputs(gives(torch.zeros(2)), gives(b), ONE)
    assert found.max_rel_error == inf
    assert not found.identical
    assert re.search(text, found.mismatch)


def test_double_precision_proves_more() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    merged = nn.Linear(64, 64)
    with torch.no_grad():
        w1, w2 = first.weight.double(), second.weight.double()
        merged.to(torch.float64)
        merged.weight.copy_(w2 @ w1)
        merged.bias.copy_(w2 @ first.bias.double() + second.bias)
    pair = nn.Sequential(first, second)
    x = [torch.randn(8, 64)]
    found = compare_outputs(pair, merged, x, dtype=torch.float64)
    assert found.max_rel_error < 1e-13
    assert first.weight.dtype == torch.float32
    assert torch.equal(first.weight.double(), w1)
    found = compare_outputs(pair, merged, x, dtype=torch.float32)
    assert 1e-9 < found.max_rel_error < 1e-5
    assert merged.weight.dtype == torch.float64
    assert torch.equal(merged.weight, w2 @ w1)


def test_a_model_that_overwrites_its_input_does_not_mislead() -> None:
    x = torch.tensor([-1.0, 2.0])
    found = compare_outputs(nn.ReLU(inplace=True), nn.Identity(), x)
    assert found.max_abs_error == 1.0
    assert x.tolist() == [-1.0, 2.0]


def test_failures_say_which_network() -> None:
    with pytest.raises(ConfigError, match="the second network cannot be called"):
        compare_outputs(nn.Identity(), nn.Linear(3, 3), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="give at least one"):
        compare_outputs(nn.Identity(), nn.Identity(), [])


def test_random_inputs_have_the_same_form() -> None:
    image = torch.zeros(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    inputs = {"image": image, "ids": torch.tensor([[3, 9], [5, 3]]), "mask": torch.ones(4).bool()}
    state = torch.random.get_rng_state()
    found = random_like(inputs, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found["image"].shape == image.shape
    assert found["image"].is_contiguous(memory_format=torch.channels_last)
    assert 0.8 < float(found["image"].std()) < 1.2
    assert found["ids"].dtype == torch.int64
    assert 3 <= int(found["ids"].min()) <= int(found["ids"].max()) <= 9
    assert found["mask"].dtype == torch.bool
    again, other = random_like(inputs, seed=1), random_like(inputs, seed=2)
    assert torch.equal(found["image"], again["image"])
    assert not torch.equal(found["image"], other["image"])
    assert random_like((torch.zeros(2),), seed=0)[0].shape == (2,)
