from __future__ import annotations

from collections import UserDict, namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from shoal.data.batch import batch_count, split_batch, training_batches
from shoal.errors import DataError

X = torch.arange(12.0).reshape(4, 3)
Y = torch.arange(4)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Refusing(list):
    def __len__(self):
        raise NotImplementedError


def test_a_length_is_known_or_not():
    assert batch_count(DataLoader(TensorDataset(X, Y), 3)) == training_batches([1, 2]) == 2
    for loader in (DataLoader(Stream(), 2), Refusing(), iter([])):
        assert batch_count(loader) is None
    with pytest.raises(
        DataError, match=r"DataLoader over a data set of type Stream\) have no leng"
    ):
        training_batches(DataLoader(Stream(), 2))


@pytest.mark.parametrize(
    ("batch", "inputs", "has_target"),
    [
        (X, 1, False),
        ((X,), 1, False),
        ([X, Y], 1, True),
        ((X, Y), 1, True),
        ((X, X, Y), 2, True),
        (((X, X), Y), 2, True),
        (namedtuple("Pair", "x y")(X, Y), 1, True),
    ],
)
def test_tensors_and_tuples(batch, inputs, has_target):
    split = split_batch(batch)
    assert len(split.args) == inputs
    assert all(torch.equal(arg, X) for arg in split.args)
    assert split.kwargs == {}
    assert (split.target is Y) if has_target else split.target is None
    assert split.size == 4


@pytest.mark.parametrize("key", ["labels", "label", "target", "y"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_mappings_have_their_target_under_a_known_key(key, kind):
    split = split_batch(kind({"pixel_values": X, "mask": X, key: Y}))
    assert split.args == ()
    assert set(split.kwargs) == {"pixel_values", "mask"}
    assert split.target is Y
    assert split.size == 4


def test_mapping_of_inputs_with_a_target_beside_it():
    split = split_batch(({"ids": X}, Y))
    assert set(split.kwargs) == {"ids"}
    assert split.target is Y


def test_all_tensors_move_to_the_device():
    split = split_batch({"a": X, "y": Y}, device="meta")
    assert split.kwargs["a"].device.type == "meta"
    assert split.target.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("text", "a batch is a str"),
        (None, "a batch is a NoneType"),
        ((), "no input"),
        ({"labels": Y}, "no input"),
        ((X, "cat"), "the target of a batch is a str"),
        ({"x": X, "name": ["a"]}, "name of a batch is a list"),
        ((torch.tensor(1.0), Y), "no batch dimension"),
        ((X, Y[:3]), "4 samples but 3 targets"),
        ((X, torch.tensor(1)), "4 samples but no batch dimension"),
    ],
)
def test_other_forms_are_refused_in_one_line(batch, message):
    with pytest.raises(DataError, match=message) as caught:
        split_batch(batch)
    assert "\n" not in str(caught.value)


def test_targets_may_be_lists_of_entries_and_mappings_of_tensors():
    boxes = [{"boxes": X[:i]} for i in range(4)]
    split = split_batch((X, {"count": Y, "objects": boxes}))
    assert split.first(2).target["objects"] == boxes[:2]
    assert split.first(2).target["count"].tolist() == [0, 1]
    moved = split.to("meta").target
    assert moved["count"].device.type == "meta"
    assert moved["objects"][3]["boxes"].device.type == "meta"
    with pytest.raises(DataError, match="4 samples but 3 targets"):
        split_batch((X, {"count": Y, "objects": boxes[:3]}))
