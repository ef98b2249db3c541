"""A network is data: what is saved is enough to compute the same bits anywhere."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from network_checks import (
    Call,
    evaluate,
    kinds,
    reloaded,
    reloading_differences,
    same,
    settled,
    torchvision_model,
)
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import shoal
from resealed import write_resealed
from shoal.errors import ConfigError, PlanError
from shoal.merge.padding import move_paddings_
from shoal.network import Network, capture, ops
from shoal.network.saving import save
from shoal.network.structures import tree_from_json, tree_to_json

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> Network:
    torch.manual_seed(0)
    return capture(settled(shoal.models.cifar_resnet20(width=4)), IMAGES)


OPERATIONS: dict[str, Callable[[Network], Any]] = {
    "line": lambda net: shoal.linearize_(net, ["layer1.0.relu", "relu"], loader=[IMAGES]),
    "identity": lambda net: shoal.linearize_(net, ["layer1.0.relu"], how="identity"),
    "drop": lambda net: shoal.drop_(net, ["layer2.1", "layer3.2"]),
    "collapse": lambda net: shoal.collapse_(net, ["layer1.1"], loader=[IMAGES]),
    "padding": lambda net: (
        shoal.linearize_(net, ["layer1.0.relu"], loader=[IMAGES]),
        move_paddings_(net, [("layer1.0.conv1", "layer1.0.conv2")]),
    ),
    "merge": lambda net: (
        shoal.linearize_(net, ["layer1.0.relu", "layer2.1.relu"], loader=[IMAGES]),
        shoal.merge_(net, policy="always"),
    ),
}


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_after_each_operation_the_same_bits_come_back(resnet: Network, operation: str) -> None:
    net = resnet.copy().eval()
    OPERATIONS[operation](net)
    assert reloading_differences(net, IMAGES) == []
    assert reloaded(net).plan.to_dict() == net.plan.to_dict()


def test_formats_of_memory_types_and_what_is_frozen_come_back(resnet: Network) -> None:
    for change in (
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.double(),
        lambda net: net.get_parameter("conv1.weight").requires_grad_(False),
    ):
        net = resnet.copy()
        change(net)
        dtype = net.get_parameter("conv1.weight").dtype
        assert reloading_differences(net, IMAGES.to(dtype)) == []


def test_constants_and_buffers_that_no_state_dict_holds_come_back() -> None:
    model = Call(lambda self, x: x * self.scale + torch.tensor([1.0, 2.0, 3.0]) + self.bias)
    model.register_buffer("scale", torch.randn(3), persistent=False)
    model.register_buffer("bias", torch.randn(3))
    net = capture(model, torch.randn(2, 3))
    back = reloaded(net)
    assert list(back.state_dict()) == ["bias"]
    assert same(evaluate(back, torch.ones(2, 3)), evaluate(net, torch.ones(2, 3)))


@pytest.mark.parametrize(
    "shift", [torch.tensor(0.5).expand(3, 1, 1), torch.arange(6.0)[::5].expand(3, 2)]
)
def test_a_buffer_whose_entries_share_memory_comes_back(shift: Tensor, tmp_path: Path) -> None:
    model = Call(lambda self, x: self.a(x - self.shift), a=nn.Linear(shift.shape[-1], 4))
    model.register_buffer("shift", shift)
    x = torch.randn(2, *shift.shape)
    net = capture(model, x)
    assert same(evaluate(reloaded(net), x), evaluate(net, x))
    path = save(net, tmp_path / "net") / "network.json"
    description = json.loads(path.read_text())
    buffer = description["modules"][""]["buffers"]["shift"]
    assert "strides" not in buffer
    buffer["strides"] = list(shift.stride())  # as earlier versions wrote it
    write_resealed(path, json.dumps(description))
    assert same(evaluate(shoal.load(path.parent), x), evaluate(net, x))


@pytest.mark.parametrize(
    "clip", [nn.Hardtanh(0.0, math.inf), Call(lambda self, x: x.clamp(0, math.inf))]
)
def test_a_clip_without_an_upper_end_is_a_relu_and_comes_back(clip: nn.Module) -> None:
    points = torch.tensor([[-1.0, 0.0, 25.0]] * 2)
    net = capture(nn.Sequential(nn.Identity(), clip), points)
    assert kinds(net) == ["relu"]

    def learnt(module: nn.Module) -> tuple[Tensor, Tensor | None]:
        x = points.clone().requires_grad_()
        outputs = module(x)
        outputs.sum().backward()
        return outputs, x.grad

    assert same(learnt(net), learnt(clip))
    assert same(learnt(reloaded(net)), learnt(clip))


# ---------------------------------------------------------------------- graphs inside


@pytest.fixture(scope="module")
def branching() -> Network:
    """A network that branches by its data, in one of the branches again."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        def below(z: Tensor) -> Tensor:
            return torch.cond(z.max() > 1, torch.sin, torch.cos, (z,))

        z = self.a(x)
        return torch.cond(z.sum() > 0, lambda z: self.b(z) + 1.0, below, (z,))

    torch.manual_seed(0)
    return capture(Call(forward, a=nn.Linear(3, 3), b=nn.Linear(3, 3)).eval(), torch.randn(4, 3))


def test_a_network_that_branches_by_its_data_comes_back(branching: Network) -> None:
    back, x = reloaded(branching), torch.ones(4, 3)
    for scale in (-9, -1, 1, 9):
        assert same(evaluate(back, scale * x), evaluate(branching, scale * x))


def _node(name: str, op: str, target: str, *args: Any) -> dict[str, Any]:
    return {"name": name, "op": op, "target": target, "args": list(args), "meta": {}}


HARM = {
    "calls": [
        _node("held", "call_module", "__init__.__globals__.get", "__builtins__"),
        _node("found", "call_function", "operator.getitem", {"node": "held"}, "eval"),
        _node("kept", "call_module", "__setattr__", "f", {"node": "found"}),
        _node("done", "call_module", "f", "print('x')"),
    ],
    "a method": [_node("done", "call_module", "__setattr__", "training", 3)],
    "reads": [_node("held", "get_attr", "__init__.__globals__")],
    "its type": [_node("held", "get_attr", "__class__")],
}


@pytest.mark.parametrize("place", ["", "true_graph_0", "false_graph_0.true_graph_0"])
@pytest.mark.parametrize("harm", HARM)
def test_no_graph_of_a_file_calls_or_reads_what_is_no_layer_or_tensor(
    branching: Network, harm: str, place: str, tmp_path: Path
) -> None:
    path = save(branching, tmp_path / "net") / "network.json"
    description = json.loads(path.read_text())
    graph = description["modules"][place]["nodes"] if place else description["nodes"]
    graph[-1:-1] = HARM[harm]
    write_resealed(path, json.dumps(description))
    with pytest.raises(PlanError) as caught:
        shoal.load(path.parent)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- without the model

_MODEL = """
import torch
from torch import nn
from shoal.compat import import_torchvision
torchvision = import_torchvision()
class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torchvision.ops.Conv2dNormActivation(3, 8)
        self.drop = nn.Dropout(0.3)
        self.depth = torchvision.ops.StochasticDepth(0.4, "row")
        self.head = nn.Linear(8, 5)
    def forward(self, image, *, scale):
        x = self.depth(self.features(image)).mean((2, 3))
        return {"logits": self.head(self.drop(x)) * scale, "pair": (x, [x + 1])}
"""
_SAVE = """
import sys, torch, shoal
sys.path.insert(0, sys.argv[1])
import mine
torch.manual_seed(0)
inputs = {"image": torch.randn(4, 3, 12, 12), "scale": torch.ones(4, 1)}
net = shoal.capture(mine.Mine().train(), inputs).copy()
shoal.save(net, sys.argv[2])
"""
_RUN = """
import sys, torch
for name in ("torchvision", "timm", "transformers", "mine"):
    sys.modules[name] = None
import shoal
net = shoal.load(sys.argv[1])
torch.manual_seed(0)
inputs = {"image": torch.randn(4, 3, 12, 12), "scale": torch.ones(4, 1)}
outputs = [net.eval()(**inputs), net.train()(**inputs), net.state_dict()]
torch.save(torch.utils._pytree.tree_leaves(outputs), sys.argv[2])
"""


@pytest.mark.long
def test_no_source_no_library_no_place_is_needed(tmp_path: Path) -> None:
    torchvision_model("resnet18")  # skips where torchvision is not installed
    (tmp_path / "mine.py").write_text(_MODEL)
    (tmp_path / "elsewhere").mkdir()
    saved, moved = tmp_path / "saved", tmp_path / "moved"

    def python(script: str, *arguments: Path) -> None:
        words = [sys.executable, "-c", script, *map(str, arguments)]
        subprocess.run(words, check=True, cwd=tmp_path / "elsewhere", timeout=300)

    python(_SAVE, tmp_path, saved)
    python(_RUN, saved, tmp_path / "before.pt")
    saved.rename(moved)
    (tmp_path / "mine.py").unlink()
    python(_RUN, moved, tmp_path / "after.pt")
    before, after = (torch.load(tmp_path / f"{name}.pt") for name in ("before", "after"))
    assert len(before) > 10
    assert all(map(torch.equal, before, after))


# ---------------------------------------------------------------------- structures

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


pytree.register_dataclass(Output)


def test_structures_come_back_as_what_behaves_alike() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    for value in ((one, [two]), {"b": one, "a": (two,)}, OrderedDict(z=one, y=two), [one]):
        structure = pytree.tree_structure(value)
        assert tree_from_json(tree_to_json(structure)) == structure
    model = Call(lambda self, x: Pair(x + 1, Output(self.a(x))), a=nn.Linear(3, 3))
    net = capture(model, torch.randn(2, 3))
    output, expected = (evaluate(n, torch.ones(2, 3)) for n in (reloaded(net), net))
    assert torch.equal(output.left, expected.left)
    assert torch.equal(output[1].logits, expected.right.logits)
    assert torch.equal(output.right[0], output.right["logits"])
    assert output.right.hidden is None
    with pytest.raises(AttributeError, match="no field 'loss'"):
        _ = output.right.loss
    assert reloaded(reloaded(net)).code == net.code


# ---------------------------------------------------------------------- operators of one's own


@pytest.fixture(scope="module")
def mine() -> Iterator[Any]:
    library = torch.library.Library("shoal_tests", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: 2 * x, "CompositeExplicitAutograd")
    library.impl("twice", lambda x: torch.empty_like(x), "Meta")
    yield torch.ops.shoal_tests.twice.default
    library._destroy()


class Shift(nn.Module):
    """A layer of one's own."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def test_what_is_not_registered_is_named_when_it_is_saved(mine: Any, tmp_path: Path) -> None:
    net = capture(Call(lambda self, x: mine(self.a(x)), a=nn.Linear(3, 3)), torch.randn(2, 3))
    with pytest.raises(PlanError, match=r"'shoal_tests\.twice\.default'.*register"):
        save(net, tmp_path / "net")
    assert not (tmp_path / "net").exists()
    shoal.register_op(mine)
    assert same(evaluate(reloaded(net), torch.ones(2, 3)), evaluate(net, torch.ones(2, 3)))
    net = capture(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)).copy()
    net.replace_module("1", Shift(2.0))
    with pytest.raises(PlanError, match="'1' is a Shift, which cannot be written"):
        save(net, tmp_path / "net")
    shoal.register_op(Shift, arguments=("by",))
    back = reloaded(net)
    assert isinstance(back.get_submodule("1"), Shift)
    assert same(evaluate(back, torch.ones(2, 3)), evaluate(net, torch.ones(2, 3)))


def test_what_cannot_be_registered_is_said() -> None:
    with pytest.raises(ConfigError, match="no property 'colour'"):
        shoal.register_op(Shift, colour="red")
    with pytest.raises(ConfigError, match="another type of module is called 'ReLU'"):
        shoal.register_op(type("ReLU", (nn.Module,), {}))


def test_the_table_names_functions_that_do_nothing_else_than_compute() -> None:
    for name in ("from_file", "set_", "record_stream", "_print", "save", "resize_"):
        assert ops.function_named(f"aten.{name}.default") is None
    assert ops.function_named("aten.add.__class__") is None
    assert ops.function_named("operator.methodcaller") is None


OPERATORS = """
import shoal
from torch import nn


class Ripple(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by * x


shoal.register_op(Ripple, arguments=("by",))
"""


def test_operators_of_an_installed_package_need_no_import(tmp_path: Path) -> None:
    packages, saved = tmp_path / "packages", tmp_path / "saved"
    about = packages / "ripples-1.0.dist-info"
    about.mkdir(parents=True)
    (packages / "ripples.py").write_text(OPERATORS)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ripples\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[shoal.ops]\nripples = ripples\n")
    code = f"""if True:
        import sys
        import torch
        import shoal
        inputs = torch.ones(2, 3)
        if sys.argv[1] == "save":
            import ripples
            network = shoal.capture(torch.nn.Sequential(ripples.Ripple(3.0)), inputs)
            shoal.save(network, {str(saved)!r})
        else:
            print(shoal.load({str(saved)!r})(inputs).sum().item())
    """
    for what, printed in (("save", ""), ("load", "18.0")):
        done = subprocess.run(
            [sys.executable, "-c", code, what],
            env={**os.environ, "PYTHONPATH": str(packages)},
            capture_output=True,
            text=True,
        )
        assert (done.stdout.strip(), done.returncode) == (printed, 0), done.stderr[-2000:]
