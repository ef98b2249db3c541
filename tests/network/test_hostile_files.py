"""Files that were written to do harm: each is refused in one line, and nothing of it is done."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import shoal
from resealed import write_resealed
from shoal.errors import PlanError


def node(name: str, op: str, target: str, *args: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "target": target, "args": list(args), "meta": {}}


def ref(name: str) -> dict[str, str]:
    return {"node": name}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net = shoal.capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.randn(2, 4))
    return shoal.save(net, tmp_path / "net")


def described(folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((folder / "network.json").read_text())
    return held


def refused(folder: Path, held: dict[str, Any], words: str) -> None:
    write_resealed(folder / "network.json", json.dumps(held))
    with pytest.raises(PlanError, match=words) as caught:
        shoal.load(folder)
    assert "\n" not in str(caught.value)


EMPTY = {"nodes": [node("output", "output", "output", 0)]}


def test_no_node_takes_the_name_of_the_network(folder: Path) -> None:
    held = described(folder)
    first, *others, last = held["nodes"]
    calls = [node("t", "call_module", "b1", ref(first["name"])),
             node("r", "call_module", "b2", ref("t"))]  # fmt: skip
    held["nodes"] = [first, *others, *calls, last]
    one = [node("self", "placeholder", "x"),
           node("g", "get_attr", "register_hook.__globals__"),
           node("t", "call_function", "operator.getitem", ref("g"), "torch"),
           node("output", "output", "output", ref("t"))]  # fmt: skip
    two = [node("self", "placeholder", "x"), node("s", "call_module", "os.system", "exit"),
           node("output", "output", "output", ref("s"))]  # fmt: skip
    held["modules"] |= {
        "b1": {"nodes": one}, "b1.register_hook": {}, "b1.register_hook.__globals__": EMPTY,
        "b2": {"nodes": two}, "b2.os": {}, "b2.os.system": {"type": "Identity"},
    }  # fmt: skip
    refused(folder, held, "the code reads ''")


def test_letters_of_another_width_are_read_as_python_reads_them(folder: Path) -> None:
    held = described(folder)
    *first, last = held["nodes"]
    path = "\uff46orward.__\uff47lobals__"  # to Python forward.__globals__
    held["nodes"] = [*first, node("g", "get_attr", path), last]
    held["modules"] |= {path.partition(".")[0]: {}, path: EMPTY}
    refused(folder, held, "the code reads 'forward.__globals__'")


def test_a_layer_takes_only_what_the_table_says(folder: Path) -> None:
    held = described(folder)
    held["modules"]["z"] = {"type": "Linear", "in_features": 200_000, "out_features": 100_000,
                            "bias": False, "device": "cpu"}  # fmt: skip
    begun = time.monotonic()
    refused(folder, held, "takes no 'device'")
    assert time.monotonic() - begun < 5


def test_modules_that_hold_each_other_end(folder: Path) -> None:
    held = described(folder)
    held["modules"] |= {"z": {}, "z.a": {"same": "z"}}
    refused(folder, held, "holds itself")
    held = described(folder)
    path = "z"
    held["modules"][path] = {}
    for _ in range(40):  # two modules hold the next one
        a, b = f"{path}.a", f"{path}.b"
        held["modules"] |= {a: {}, b: {}, f"{a}.c": {}, f"{b}.c": {"same": f"{a}.c"}}
        path = f"{a}.c"
    refused(folder, held, "too often")


@pytest.mark.parametrize(
    "made",
    [
        {"target": "aten.full.default", "args": [], "kwargs": {"size": [2**43], "fill_value": 0}},
        {"target": "aten.zeros.default", "args": [{"tuple": [2**43]}]},
        {"target": "aten.linspace.default", "args": [0, 1, 2**43]},
    ],
)
def test_no_tensor_is_larger_than_memory(folder: Path, made: dict[str, Any]) -> None:
    held = described(folder)
    *first, last = held["nodes"]
    large = {"name": "large", "op": "call_function", "meta": {}, **made}
    held["nodes"] = [*first, large, last]
    refused(folder, held, "larger than any memory")


def test_what_notes_say_moves_no_cursor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from shoal.cli import main

    held = described(folder)
    held["notes"] = ["see \x1b[2Jnote \x9b5A"]
    write_resealed(folder / "network.json", json.dumps(held))
    assert main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "\x1b[2J" not in shown.out + shown.err
    assert "\x9b" not in shown.out + shown.err
