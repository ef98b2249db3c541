"""What is found in a graph is right, is found once, and is found again after every change."""

from __future__ import annotations

import ast
import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import shoal
from captures import resnet20
from changed import changed
from shoal.merge.padding import move_paddings_
from shoal.network import Network
from shoal.network.flow import Flow
from shoal.surgery import collapse_, drop_, linearize_

SOURCES = st.lists(
    st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True), min_size=1, max_size=24
)


def drawn_graph(sources: list[list[int]], inputs: int) -> fx.Graph:
    """Return a graph whose i-th call reads earlier nodes, by numbers that are taken modulo."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(inputs)]
    for node in nodes:
        node.meta["shape"] = (None, 2)
    for reads in sources:
        read = tuple(dict.fromkeys(nodes[i % len(nodes)] for i in reads))
        nodes.append(graph.call_function(sum, read))
    graph.output(nodes[-1])
    return graph


@settings(deadline=None, max_examples=60)
@given(SOURCES, st.integers(1, 3))
def test_dominators_are_those_of_networkx(sources: list[list[int]], inputs: int) -> None:
    graph = drawn_graph(sources, inputs)
    flow = Flow(graph)
    arrows = networkx.DiGraph()
    for node in graph.nodes:
        before = node.all_input_nodes or ["entry"]
        arrows.add_edges_from((source, node) for source in before)
    wanted = networkx.immediate_dominators(arrows, "entry")
    for node in graph.nodes:
        assert (flow.dominator[node] or "entry") == wanted[node]


@settings(deadline=None, max_examples=60)
@given(SOURCES, st.integers(1, 2), st.integers(0, 30), st.integers(0, 30))
def test_between_two_nodes_lies_what_is_on_a_path(
    sources: list[list[int]], inputs: int, first: int, last: int
) -> None:
    graph = drawn_graph(sources, inputs)
    nodes = list(graph.nodes)
    start, end = nodes[first % len(nodes)], nodes[last % len(nodes)]
    arrows = networkx.DiGraph([(n, user) for n in nodes for user in n.users])
    arrows.add_nodes_from(nodes)
    flow = Flow(graph)
    if start is end:
        return
    after, before = networkx.descendants(arrows, start), networkx.ancestors(arrows, end)
    on_a_path = (after & (before | {end})) if end in after else set()
    assert flow.leads(start, end) == (end in after)
    assert list(flow.between(start, end)) == [n for n in nodes if n in on_a_path]


# ---------------------------------------------------------------------- once


@pytest.fixture(scope="module")
def captured() -> Network:
    return resnet20()


def data() -> list[Tensor]:
    return [torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))]


def found(network: Network) -> tuple[object, ...]:
    return network.sites, network.blocks, [(s.name, s.shape) for s in network.stretches]


def test_nothing_is_found_twice(captured: Network) -> None:
    view = captured.view
    assert captured.view is view
    assert captured.sites[3] is captured.sites[3]
    assert captured.block("layer1.1") is captured.blocks[1]
    assert captured.stretch("layer1.1") is view.stretches["layer1.1"]
    assert captured.node_of("layer1.0.relu") is captured.site("layer1.0.relu").node
    assert [view.flow.order[node] for node in captured.graph.nodes] == list(
        range(len(view.flow.order))
    )
    assert {view.channel_dim(site.node) for site in captured.sites} == {1}


CHANGES: dict[str, Callable[[Network], object]] = {
    "linearize": lambda n: linearize_(n, "layer1.0.relu", how="identity"),
    "drop": lambda n: drop_(n, "layer1.0"),
    "collapse": lambda n: collapse_(n, "layer1.1", data()),
    "merge": lambda n: shoal.merge_(changed(linearize_, n, "layer1.0.relu", how="identity")),
    "replace": lambda n: n.replace_module("layer1.0.relu", nn.Identity()),
    "become": lambda n: n.become(changed(drop_, n.copy(), "layer2.1")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_all_is_found_anew(captured: Network, change: str) -> None:
    network = captured.copy()
    before = found(network)
    assert before == found(captured)
    CHANGES[change](network)
    assert found(network) != before
    assert found(network) == found(network.copy())  # a copy has found nothing yet
    assert all(site.node in network.view.flow.order for site in network.sites)
    assert found(captured) == before


def test_layers_changed_in_place_are_found_as_they_are(captured: Network) -> None:
    network = changed(linearize_, captured.copy(), "layer1.0.relu", how="identity")
    view, _ = network.view, found(network)
    move_paddings_(network, [("layer1.0.conv1", "layer1.0.conv2")])
    assert network.view is not view
    assert found(network) == found(network.copy())


def test_what_fails_leaves_all_as_it_was(captured: Network) -> None:
    network = captured.copy()
    before, code = found(network), network.code

    def fail() -> None:
        with network.unchanged_on_error():
            drop_(network, "layer1.0")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert (found(network), network.code, len(network.plan)) == (before, code, 0)


def test_a_network_does_not_hold_itself(captured: Network) -> None:
    """What has found its sites and blocks is freed at once, not when memory is collected."""
    network = captured.copy()
    found(network)
    weight = weakref.ref(network.get_parameter("conv1.weight"))
    gc.disable()
    try:
        del network
        assert weight() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------- a public face


def test_nobody_outside_touches_what_is_private_to_a_network(captured: Network) -> None:
    own = {*vars(captured), *vars(Network), *Network.__annotations__}
    private = {n for n in own - set(dir(nn.Module())) if n.startswith("_") and n[1] != "_"}
    assert {"_root", "_run", "_view", "_keep", "_site_records"} <= private
    package = Path(shoal.__file__).parent
    touched = [
        f"{path.relative_to(package)}:{node.lineno} {node.attr}"
        for path in sorted(package.rglob("*.py"))
        if path.parent.name != "network"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in private
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    ]
    assert touched == []
