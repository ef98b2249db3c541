"""Listening changes nothing; a part of a network computes what the whole computes there."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import shoal
from captures import resnet20
from shoal.models import cifar_resnet20
from shoal.network import Network
from shoal.network.runner import Runner, Tap, listen


@pytest.fixture(scope="module")
def network() -> Network:
    return resnet20()


def test_taps_hear_the_operands_and_the_sum(network: Network) -> None:
    blocks = network.blocks
    heard: list[tuple[Tensor, ...]] = []
    taps = [
        Tap(b.addition, (b.shortcut, b.output, b.addition), lambda *v: heard.append(v))
        for b in blocks
    ]
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        before = network(x)
        handle = listen(network, taps)
        during = network(x)
        handle.remove()
        after = network(x)
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert len(heard) == len(blocks)
    assert all(torch.equal(a + b, c) for a, b, c in heard)


def test_several_listen_and_leave_in_any_order(network: Network) -> None:
    block = network.blocks[0]
    counts = [0, 0]

    def hearer(index: int) -> Tap:
        def hear(value: Tensor) -> None:
            counts[index] += 1

        return Tap(block.addition, (block.addition,), hear)

    x = torch.randn(2, 3, 16, 16)
    first, second = listen(network, [hearer(0)]), listen(network, [hearer(1)])
    network(x)
    first.remove()
    network(x)
    second.remove()
    network(x)
    assert counts == [1, 2]
    assert network.code == network.copy().code


# ---------------------------------------------------------------------- parts of drawn networks


class Tangle(nn.Module):
    """Layers that each read the sum of drawn earlier values; some without gradients or in bfloat16.

    The output is the sum of all, so that every value matters.
    """

    def __init__(self, reads: list[list[int]], modes: list[int]) -> None:
        super().__init__()
        self.reads, self.modes = reads, modes
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in reads)

    def forward(self, x: Tensor) -> Tensor:
        past = [x]
        for layer, reads, mode in zip(self.layers, self.reads, self.modes, strict=True):
            y = torch.stack([past[i % len(past)] for i in reads]).sum(0)
            if mode == 1:
                with torch.no_grad():
                    y = torch.relu(layer(y))
            elif mode == 2:
                with torch.autocast("cpu", torch.bfloat16):
                    y = torch.relu(layer(y))
                y = y.float()
            else:
                y = layer(y)
            past.append(y)
        return torch.stack(past).sum(0)


def all_values(network: Network, x: Tensor) -> dict[fx.Node, Any]:
    runner = Runner(network, keep=network.graph.nodes)
    values = runner.values(x)
    assert torch.equal(runner.result(values), network(x))
    return values


def tensors(values: dict[fx.Node, Any]) -> list[fx.Node]:
    return [n for n, v in values.items() if isinstance(v, Tensor) and n.op != "get_attr"]


DRAWN = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(0, 2)),
    min_size=2,
    max_size=5,
)


@pytest.mark.long
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(DRAWN)
def test_a_part_computes_what_the_whole_computes(drawn: list[tuple[list[int], int]]) -> None:
    torch.manual_seed(0)
    model = Tangle([reads for reads, _ in drawn], [mode for _, mode in drawn]).eval()
    network = shoal.capture(model, torch.randn(2, 4)).copy()
    x = torch.randn(3, 4)
    values = all_values(network, x)
    for node in tensors(values):
        # Stopped at a node: its value, and no other.
        stopped = Runner(network, stop=[node]).values(x)
        assert set(stopped) == {node}
        assert torch.equal(stopped[node], values[node])
        # Started from a node whose value is its own: the same output.
        part = Runner(network, start=[node])
        given = {n: values[n] for n in part.reads}
        same = part.values(given={**given, node: values[node]})
        assert torch.equal(part.result(same), network(x))
        # Another value there: what the graph gives with a node that returns it.
        other = torch.randn_like(values[node])
        changed = part.result(part.values(given={**given, node: other}))
        assert torch.equal(changed, replaced(network, node, other)(x))
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def replaced(network: Network, node: fx.Node, value: Tensor) -> Network:
    """Return a copy of a network in which one node's value is a constant."""
    twin = network.copy()
    place = list(network.graph.nodes).index(node)
    old = list(twin.graph.nodes)[place]
    twin.register_buffer("constant", value)
    last = [n for n in twin.graph.nodes if n.op == "placeholder"][-1]
    with twin.graph.inserting_after(old if old.op != "placeholder" else last):
        new = twin.graph.get_attr("constant")
    old.replace_all_uses_with(new)
    twin.recompile()
    return twin


def test_values_are_freed_after_their_last_use() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)]).eval()
    network = shoal.capture(model, torch.randn(2, 4))
    alive: list[weakref.ref[Tensor]] = []
    counts = []

    def hear(value: Tensor) -> None:
        alive.append(weakref.ref(value))
        counts.append(sum(ref() is not None for ref in alive))

    nodes = [node for node in network.graph.nodes if node.op == "call_module"]
    with torch.no_grad():
        runner = Runner(network, keep=[nodes[0]], taps=[Tap(n, (n,), hear) for n in nodes])
        values = runner.values(torch.randn(3, 4))
    assert max(counts) == 3  # what is kept, what a layer reads, what it gives
    assert set(values) == {nodes[0], runner.end}


def test_an_error_inside_a_part_leaves_its_contexts() -> None:
    network = shoal.capture(Tangle([[0], [1]], [2, 1]).eval(), torch.randn(2, 4))

    def fail(value: Tensor) -> None:
        raise RuntimeError("broken")

    node = network.node_of("layers.1")
    runner = Runner(network, start=[network.node_of("layers.0")], taps=[Tap(node, (node,), fail)])
    values = all_values(network, torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="broken"):
        runner.values(given=values)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


@pytest.mark.long
def test_criteria_that_run_parts_take_a_model_with_autocast_in_its_forward() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cifar_resnet20(width=4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.net(x)
            return y.float()

    torch.manual_seed(0)
    network = shoal.capture(Half().eval(), torch.randn(2, 3, 16, 16))
    data = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,)))]
    for criterion in ("line_loss", "lesion"):
        scores = shoal.score(network, data, criterion=criterion)
        assert len(scores) > 0
