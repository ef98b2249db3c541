from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shoal
from changed import changed
from shoal import compat
from shoal.errors import ConfigError, NameNotFoundError, ShoalError
from shoal.models import cifar_resnet20, cifar_resnet32, cifar_resnet56, cifar_resnet110
from shoal.network import Network
from shoal.surgery import drop_, linearize_, zero_out_


def settled(model: nn.Module) -> nn.Module:
    """Give norms statistics as training leaves them, and weights that nothing cancels."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(0.1 * torch.randn(module.num_features, generator=generator))
    return model.eval()


def narrow() -> nn.Module:
    torch.manual_seed(0)
    return settled(cifar_resnet20(width=4))


@pytest.fixture(scope="module")
def captured() -> Network:
    return shoal.capture(narrow(), torch.randn(2, 3, 16, 16))


@pytest.fixture
def network(captured: Network) -> Network:
    return captured.copy()


@contextmanager
def times_zero(model: nn.Module, path: str) -> Iterator[None]:
    """Multiply what the module at `path` gives by zero."""
    handle = model.get_submodule(path).register_forward_hook(lambda m, x, y: y * 0)
    try:
        yield
    finally:
        handle.remove()


def torchvision_model(name: str) -> nn.Module:
    try:
        library = compat.import_torchvision()
    except ShoalError as error:
        pytest.skip(str(error))
    return getattr(library.models, name)(weights=None)


def timm_model(name: str) -> nn.Module:
    try:
        library = compat.import_timm()
    except ShoalError as error:
        pytest.skip(str(error))
    return library.create_model(name)


# model, size, the module whose output is the branch's, by the block's name, and how many there are
MODELS: dict[str, tuple[Callable[[], nn.Module], int, str, int]] = {
    "cifar_resnet20": (cifar_resnet20, 32, ".bn2", 7),
    "cifar_resnet32": (cifar_resnet32, 32, ".bn2", 13),
    "cifar_resnet56": (cifar_resnet56, 32, ".bn2", 25),
    "cifar_resnet110": (cifar_resnet110, 32, ".bn2", 52),
    "resnet50": (lambda: torchvision_model("resnet50"), 64, ".bn3", 12),
    "mobilenet_v2": (lambda: torchvision_model("mobilenet_v2"), 64, ".conv", 10),
    "swin_t": (lambda: torchvision_model("swin_t"), 224, "", 24),
    "vit_tiny": (lambda: timm_model("vit_tiny_patch16_224"), 224, "", 24),
}


@pytest.mark.parametrize(
    "name",
    [n if n == "cifar_resnet20" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def test_the_smaller_network_is_the_original_with_the_branch_times_zero(name: str) -> None:
    make, size, last, count = MODELS[name]
    torch.manual_seed(0)
    model = settled(make())
    x = torch.randn(2, 3, size, size)
    network = shoal.capture(model, x, check=False)
    removable = [block.name for block in network.blocks if block.removable]
    assert len(removable) == count
    with torch.no_grad():
        for block in removable:
            smaller = changed(drop_, network.copy(), block)
            with times_zero(model, block + last):
                wanted = model(x)
            torch.testing.assert_close(smaller(x), wanted, rtol=0, atol=1e-6)
            fewer = sum(p.numel() for p in smaller.parameters())
            assert fewer < sum(p.numel() for p in network.parameters())


def test_what_remains_keeps_names_and_weights(network: Network) -> None:
    before = dict(network.state_dict())
    sites = {site.name for site in network.sites}
    drop_(network, ["layer2.1"])
    after = network.state_dict()
    gone = {name for name in before if name.startswith("layer2.1.")}
    assert set(after) == set(before) - gone
    assert all(torch.equal(after[name], before[name]) for name in after)
    # The rectifier behind the addition belongs to what remains.
    assert {site.name for site in network.sites} == sites - {"layer2.1.relu"}
    assert [op.to_dict() for op in network.plan.operations] == [
        {"kind": "drop", "names": ["layer2.1"], "options": {}}
    ]


def test_the_order_of_drops_does_not_matter(network: Network) -> None:
    names = ["layer1.0", "layer1.1", "layer3.2"]
    x = torch.randn(2, 3, 16, 16)
    found = []
    for order in permutations(names):
        one_by_one = network.copy()
        for name in order:
            drop_(one_by_one, name)
        found.append(one_by_one)
    found.append(changed(drop_, network.copy(), names))
    with torch.no_grad():
        outputs = [smaller(x) for smaller in found]
    assert len({smaller.code for smaller in found}) == 1
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert len({tuple(smaller.state_dict()) for smaller in found}) == 1


def test_all_blocks_can_go(network: Network) -> None:
    removable = [block.name for block in network.blocks if block.removable]
    drop_(network, removable)
    assert [block.name for block in network.blocks] == ["layer2.0", "layer3.0"]
    assert network(torch.randn(3, 3, 16, 16)).shape == (3, 10)
    assert not [name for name in network.state_dict() if name.startswith("layer1")]


def test_a_dropped_network_trains_copies_saves_and_loads(network: Network, tmp_path: Path) -> None:
    drop_(network, "layer1.1")
    linearize_(network, "layer3.1.relu", how="identity")
    drop_(network, ["layer2.2", "layer3.2"])
    network.train()
    network(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    network.eval()
    shoal.save(network, tmp_path / "small")
    loaded = shoal.load(tmp_path / "small")
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))
        assert torch.equal(network.copy()(x), network(x))


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (["layer1.0", "layer2.7"], NameNotFoundError, ("layer2.7", "did you mean 'layer2.")),
        (["layer1.0", "layer2.0"], ConfigError, ("layer2.0", "shape")),
        (["layer1.0", "layer1.0"], ConfigError, ("layer1.0", "twice")),
    ],
)
@pytest.mark.parametrize("operation", [drop_, zero_out_])
def test_an_error_leaves_the_network_as_it_was(
    network: Network,
    operation: Callable[..., Any],
    names: list[str],
    error: type[ShoalError],
    words: tuple[str, ...],
) -> None:
    code, state = network.code, {k: v.clone() for k, v in network.state_dict().items()}
    with pytest.raises(error) as caught:
        operation(network, names)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    assert network.code == code
    assert len(network.plan) == 0
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_no_names_change_nothing(network: Network) -> None:
    assert len(changed(drop_, network, []).plan) == 0


def test_a_dropped_block_is_unknown_afterwards(network: Network) -> None:
    drop_(network, "layer1.0")
    with pytest.raises(NameNotFoundError, match=r"layer1\.0"):
        drop_(network, "layer1.0")


def test_zeroed_and_dropped_give_the_same_output(network: Network) -> None:
    names = ["layer1.0", "layer2.1", "layer3.2"]
    x = torch.randn(4, 3, 16, 16)
    zeroed, dropped = (
        changed(zero_out_, network.copy(), names),
        changed(drop_, network.copy(), names),
    )
    with torch.no_grad():
        torch.testing.assert_close(zeroed(x), dropped(x), rtol=0, atol=1e-6)
    assert len(zeroed.graph.nodes) == len(network.graph.nodes)
    assert len(zeroed.plan) == 0
    assert not zeroed.get_parameter("layer1.0.conv1.weight").detach().any()


# ---------------------------------------------------------------------- other shapes of branches


class Tokens(nn.Module):
    """A transformer-like block: two additions in one forward, a scale held by the block itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.mlp = nn.Linear(width, width), nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.rand(width))
        self.spare = nn.Parameter(torch.ones(3))  # nothing uses it

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.mix(self.norm1(x))
        return x + self.mlp(torch.nn.functional.gelu(self.norm2(x)))


class Parallel(nn.Module):
    """Two branches that start from one tensor, and a block inside a branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.outer, self.inner = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x) + self.b(x)
        z = self.outer(x)
        return x + (z + self.inner(z))


def test_names_of_blocks_stay_when_their_neighbours_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Tokens(6), Tokens(6)).eval()
    x = torch.randn(2, 5, 6)
    network = shoal.capture(model, x)
    names = [block.name for block in network.blocks]
    assert names == ["0.mix", "0.mlp", "1.mix", "1.mlp"]
    for name in names:
        rest = [other for other in names if other != name]
        assert [b.name for b in changed(drop_, network.copy(), name).blocks] == rest
    smaller = changed(drop_, network.copy(), "0.mix")
    gone = {"0.norm1.weight", "0.norm1.bias", "0.mix.weight", "0.mix.bias", "0.gamma"}
    assert set(network.state_dict()) - set(smaller.state_dict()) == gone
    drop_(smaller, "0.mlp")
    assert not [name for name in smaller.state_dict() if name.startswith("0.")]
    with torch.no_grad():
        assert torch.equal(smaller(x), model[1](x))


def test_parallel_and_nested_branches() -> None:
    torch.manual_seed(0)
    model = Parallel(6).eval()
    x = torch.randn(2, 6)
    network = shoal.capture(model, x)
    names = {block.layers: block.name for block in network.blocks if block.removable}
    assert set(names) == {("a",), ("b",), ("inner",), ("outer", "inner")}

    def reference(without: set[str]) -> Tensor:
        one = x + sum(layer(x) for n, layer in (("a", model.a), ("b", model.b)) if n not in without)
        z = model.outer(one)
        nested = z if "inner" in without else z + model.inner(z)
        return one if "outer" in without else one + nested

    block = {"a": names["a",], "b": names["b",], "inner": names["inner",]}
    block["outer"] = names["outer", "inner"]
    with torch.no_grad():
        for without in ({"a"}, {"b"}, {"a", "b"}, {"inner"}, {"a", "inner"}, {"outer"}):
            for order in (sorted(without), sorted(without, reverse=True)):
                smaller = network.copy()
                for name in order:
                    drop_(smaller, block[name])
                torch.testing.assert_close(smaller(x), reference(without))
        both = changed(drop_, network.copy(), [block["inner"], block["outer"]])
        torch.testing.assert_close(both(x), reference({"outer"}))
        assert set(both.state_dict()) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_a_slope_shared_with_what_remains_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.act = nn.PReLU(4, init=0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x + self.conv2(self.act(self.conv1(x))))

    torch.manual_seed(0)
    model = Shared().eval()
    x = torch.randn(2, 4, 5, 5)
    network = shoal.capture(model, x).copy()
    (block,) = [b.name for b in network.blocks if b.removable]
    drop_(network, block)
    with torch.no_grad():
        torch.testing.assert_close(network(x), model.act(x))
    network(x).sum().backward()
    (slope,) = network.parameters()
    assert slope.grad is not None


def test_a_scaled_or_widened_shortcut_is_not_removable() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.line(x), x, alpha=2)

    network = shoal.capture(Scaled().eval(), torch.randn(2, 4))
    (block,) = network.blocks
    assert not block.removable
    assert "scales" in block.reason


def test_a_block_that_shares_weights_stays() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(x + self.one(x))

    network = shoal.capture(Tied().eval(), torch.randn(2, 4)).copy()
    (block,) = network.blocks
    for change in (drop_, zero_out_):
        with pytest.raises(ConfigError, match=r"weights 'one\.weight' are used elsewhere too"):
            change(network, block.name)
