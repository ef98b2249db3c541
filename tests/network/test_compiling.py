"""A process may hold many networks, and `torch.compile` compiles each of them once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from network_checks import Call, same
from torch import Tensor, nn

from shoal.network import Network, capture

_MANY = 12  # PyTorch compiles the code of one function at most 8 times, then runs it uncompiled


@pytest.fixture(autouse=True)
def every_compilation_counts() -> Iterator[None]:
    """Let PyTorch fail where it would compile again, or run code uncompiled."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True, fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


def images() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def networks() -> list[Network]:
    """Networks that differ in depth; the same images go through all."""

    def network(depth: int) -> Network:
        layers = [part for _ in range(depth) for part in (nn.Linear(4, 4), nn.ReLU())]
        return capture(nn.Sequential(*layers).eval(), images())

    torch.manual_seed(0)
    return [network(1 + i % 6) for i in range(_MANY)]


def test_many_networks_are_compiled_each() -> None:
    with torch.no_grad():
        for network in networks():
            compiled = torch.compile(network, backend="eager", fullgraph=True)
            for _ in range(2):
                assert torch.equal(compiled(images()), network(images()))


def test_many_networks_are_compiled_in_place() -> None:
    with torch.no_grad():
        for network in networks():
            before = network(images())
            network.compile(backend="eager", fullgraph=True)
            for _ in range(2):
                assert torch.equal(network(images()), before)


def test_a_compiled_network_has_the_shapes_of_its_own_inputs() -> None:
    """Several sizes in several networks are no reason to compile any for a free size."""
    sizes: list[tuple[int | torch.SymInt, ...]] = []

    def record(module: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        sizes.extend(tuple(v.shape) for v in inputs if not isinstance(v, nn.Parameter))
        return module

    for size in range(4, 4 + _MANY):
        network = capture(nn.Sequential(nn.Linear(size, 4), nn.ReLU()).eval(), torch.randn(2, size))
        torch.compile(network, backend=record)(torch.randn(3, size))
    assert sizes == [(3, size) for size in range(4, 4 + _MANY)]


def test_a_changed_network_is_compiled_anew() -> None:
    with torch.no_grad():
        network = networks()[3]
        torch.compile(network, backend="eager")(images())
        network.node_of("1").replace_all_uses_with(network.node_of("0"))
        network.graph.erase_node(network.node_of("1"))
        network.recompile()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        assert torch.equal(compiled(images()), network(images()))


def two(self: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"sum": self.f(x) + y, "first": x.relu()}


def gentle(self: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = self.f(x).relu()
    with torch.no_grad():
        y = x * 2
    return x.float() + y


@pytest.mark.parametrize(
    ("forward", "inputs"), [(two, (images(), images())), (gentle, (images(),))]
)
def test_structures_and_contexts_compile_whole(forward: object, inputs: tuple[Tensor, ...]) -> None:
    torch.manual_seed(0)
    network = capture(Call(forward, f=nn.Linear(4, 4)).eval(), inputs)  # type: ignore[arg-type]
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert same(compiled(*inputs), network(*inputs))


def test_a_copy_of_a_compiled_network_is_not_compiled() -> None:
    network = networks()[0]
    network.compile(backend="eager")
    with torch.no_grad():
        assert torch.equal(network(images()), network.copy()(images()))
    assert network.copy()._compiled_call_impl is None
    assert type(network.copy()) is not type(network)
    assert isinstance(network, Network)
