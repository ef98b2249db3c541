from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from shoal.errors import OptionError, TrainingError
from shoal.tasks import find_task

LOGITS, FEATURES, HIDDEN = torch.zeros(2, 3), torch.ones(2, 8), torch.ones(2, 5, 8)


@dataclass
class Answer:
    features: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "returned",
    [
        LOGITS,
        [None, LOGITS],
        (LOGITS, HIDDEN),
        (LOGITS, (HIDDEN, HIDDEN)),
        {"loss": None, "out": LOGITS},
        OrderedDict(features=FEATURES, logits=LOGITS),
        {"features": FEATURES, "out": LOGITS},
        namedtuple("Answer", "features logits")(FEATURES, LOGITS),
        Answer(FEATURES, LOGITS),
    ],
)
def test_logits_are_found_by_name_or_as_the_only_tensor_of_their_form(returned: object) -> None:
    assert find_task().output(returned) is LOGITS


def test_several_that_could_be_meant_are_asked_for_and_never_guessed() -> None:
    for returned in ((FEATURES, LOGITS), {"features": FEATURES, "scores": LOGITS}):
        with pytest.raises(TrainingError, match="output_index") as caught:
            find_task().output(returned)
        assert "\n" not in str(caught.value)
        assert "[2, 8]" in str(caught.value)
        assert find_task("classify?output_index=1").output(returned) is LOGITS
    with pytest.raises(OptionError, match="from 0 to 1"):
        find_task("classify?output_index=2").output((FEATURES, LOGITS))


def test_an_output_without_a_tensor_is_refused() -> None:
    with pytest.raises(TrainingError, match="without a tensor"):
        find_task().output({"a": "b"})


def test_each_task_finds_the_output_of_its_own_form() -> None:
    image = torch.zeros(2, 3, 4, 4)
    assert find_task("segment").output((FEATURES, image)) is image
    assert find_task("binary").output((FEATURES, LOGITS[:, :1])).shape == (2, 1)
