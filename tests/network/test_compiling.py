"""A process may hold many networks, and `torch.compile` compiles each of them once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from network_checks import Call, same
from torch import Tensor, nn

import shoal
from shoal.models.lookup import build_model
from shoal.network import Network, capture
from shoal.runtimes.compile import Compiled

pytestmark = pytest.mark.usefixtures("every_compilation_counts")
_MANY = 12  # PyTorch compiles the code of one function at most 8 times, then runs it uncompiled


def images() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def networks() -> list[Network]:
    """Networks that differ in depth; the same images go through all."""

    def network(depth: int) -> Network:
        layers = [part for _ in range(depth) for part in (nn.Linear(4, 4), nn.ReLU())]
        return capture(nn.Sequential(*layers).eval(), images())

    torch.manual_seed(0)
    return [network(1 + i % 6) for i in range(_MANY)]


@pytest.mark.long
def test_many_networks_are_compiled_each() -> None:
    with torch.no_grad():
        for network in networks():
            compiled = torch.compile(network, backend="eager", fullgraph=True)
            for _ in range(2):
                assert torch.equal(compiled(images()), network(images()))


@pytest.mark.long
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


# ---------------------------------------------------------------------- what is done to a network


def branching() -> Network:
    """A network with a block to drop, a rectifier to linearize, a norm to fold, layers to merge."""
    torch.manual_seed(0)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + self.inner(x).relu()
        return self.last(x)

    parts = {name: nn.Linear(4, 4) for name in ("first", "inner", "last")}
    return capture(Call(forward, norm=nn.BatchNorm1d(4), **parts).eval(), images())


def linearized(network: Network) -> Network:
    shoal.linearize_(network, [site.name for site in network.sites], how="identity")
    return network


def merged(network: Network) -> Network:
    shoal.merge_(linearized(network), policy="always")
    return network


def dropped(network: Network) -> Network:
    shoal.drop_(network, [block.name for block in network.blocks])
    return network


def loaded(network: Network) -> Network:
    with TemporaryDirectory() as folder:
        shoal.save(network, folder)
        return shoal.load(folder)


CHANGES = [linearized, merged, dropped, loaded, Network.copy]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("in_place", [True, False])
def test_a_network_is_compiled_whole_before_and_after_it_changes(
    change: Callable[[Network], Network], in_place: bool
) -> None:
    """What was compiled before does not stay in the way."""

    def compiled(network: Network) -> nn.Module:
        if not in_place:
            return torch.compile(network, backend="eager", fullgraph=True)
        network.compile(backend="eager", fullgraph=True)
        return network

    with torch.no_grad():
        network = branching()
        expected = network(images())
        assert torch.equal(compiled(network)(images()), expected)
        # Merging runs the network in inference mode, for which it is compiled apart.
        with torch._dynamo.config.patch(error_on_recompile=False):
            after = change(network)
        expected = change(branching())(images())
        assert torch.equal(after(images()), expected)
        assert torch.equal(compiled(after)(images()), expected)


@pytest.mark.long
def test_a_network_may_change_any_number_of_times() -> None:
    """Site by site, as searches do: PyTorch compiles a function anew at most 8 times."""
    torch.manual_seed(0)
    layers = [part for _ in range(_MANY) for part in (nn.Linear(4, 4), nn.ReLU())]
    network = capture(nn.Sequential(*layers).eval(), images())
    with torch.no_grad():
        for site in [*network.sites]:
            shoal.linearize_(network, site.name, how="identity")
            compiled = torch.compile(network, backend="eager", fullgraph=True)
            assert torch.equal(compiled(images()), network(images()))


@pytest.mark.parametrize("form", ["pt2", "onnx"])
def test_a_compiled_network_is_exported(form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    network = branching()
    network.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        network(images())
    # Exporting captures the network, which has nothing to do with what is compiled of it.
    with torch._dynamo.config.patch(error_on_recompile=False):
        report = shoal.export(network, tmp_path / f"model.{form}", images())
    assert report.max_rel_error is not None
    assert report.max_rel_error <= report.tolerance


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        return {"scaled": self.f(x) * scale, "plain": x.relu()}


def test_inputs_by_keyword_compile_whole() -> None:
    given = {"x": images(), "scale": torch.ones(3, 1)}
    network = capture(Keywords().eval(), given)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert same(compiled(**given), network(**given))


def test_training_compiles_whole_with_the_gradients_of_the_network() -> None:
    one, other = branching().train(), branching().train()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        for network, run in ((one, one), (other, compiled)):
            network.zero_grad()
            run(images()).square().sum().backward()
    for (name, mine), its in zip(one.named_parameters(), other.parameters(), strict=True):
        assert mine.grad is not None, name
        torch.testing.assert_close(its.grad, mine.grad)
    assert torch.equal(one.get_buffer("norm.running_mean"), other.get_buffer("norm.running_mean"))


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.filterwarnings("default")  # of PyTorch's own compiler
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn", "swin_t"])
def test_inductor_compiles_published_networks_whole(name: str) -> None:
    if Compiled().lacking():
        pytest.skip("there is no compiler here")
    images = torch.randn(2, 3, 64, 64)
    network = capture(build_model(f"torchvision:{name}").eval(), images)
    with torch.no_grad():
        expected = network(images)
        for _ in range(2):  # as it is, and folded
            compiled = torch.compile(network, fullgraph=True)
            for _ in range(2):
                torch.testing.assert_close(compiled(images), expected, atol=1e-4, rtol=1e-3)
            shoal.merge_(network, policy="fold")
