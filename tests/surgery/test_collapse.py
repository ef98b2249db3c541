"""Collapse: one fitted layer takes a stretch's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captures import resnet20
from changed import changed
from collapse_checks import (
    Model,
    Pair,
    bottlenecks,
    by_name,
    images,
    inverted_residuals,
    plain_convolutions,
    same_after_loading,
)
from shoal.errors import ConfigError, DataError, NameNotFoundError, TrainingError
from shoal.models import digits_resnet
from shoal.network import Network, capture
from shoal.network.runner import Tap, listen
from shoal.surgery import linearize_
from shoal.surgery.collapse import collapse_


@pytest.fixture(scope="module")
def small() -> Network:
    return resnet20()


@pytest.fixture(scope="module")
def loader() -> list[Tensor]:
    return images(3, 16, 16, count=4, batch=16)


# ---------------------------------------------------------------------- what is linear is recovered


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("skip", [False, True])
def test_a_stretch_that_is_one_convolution_is_recovered(stride: int, skip: bool) -> None:
    torch.manual_seed(0)
    network = capture(Model(Pair(stride, skip)).eval(), torch.randn(2, 3, 13, 13))
    kernel = 7 if stride == 2 else 5
    before, x = network.copy(), images(3, 13, 13, count=1)[0]
    collapse_(network, "part", images(3, 13, 13, batch=32), ridge=1e-9, kernel_size=kernel)
    assert torch.allclose(network(x), before(x), atol=1e-4)
    new = network.get_submodule("part.collapsed")
    assert isinstance(new, nn.Conv2d)
    assert (new.kernel_size, new.stride) == ((kernel, kernel), (stride, stride))
    assert set(network.state_dict()) == {
        "part.collapsed.weight", "part.collapsed.bias", "head.weight", "head.bias"
    }  # fmt: skip


def test_an_mlp_that_is_one_linear_layer_is_recovered() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(6, 24), nn.LeakyReLU(1.0), nn.Dropout(0.1), nn.Linear(24, 6))
    model = nn.Sequential(nn.LayerNorm(6), mlp, nn.LayerNorm(6)).eval()
    network = capture(model, torch.randn(2, 5, 6))
    x = torch.randn(4, 5, 6)
    before = network(x)
    collapse_(network, "1", images(5, 6, batch=32), ridge=1e-9)
    assert torch.allclose(network(x), before, atol=1e-4)
    assert isinstance(network.get_submodule("1.collapsed"), nn.Linear)


def test_grouped_and_depthwise_layers_become_one_dense_one() -> None:
    torch.manual_seed(0)
    part = nn.Sequential(
        nn.Conv2d(4, 8, 1, groups=2), nn.LeakyReLU(1.0), nn.Conv2d(8, 8, 3, groups=8),
        nn.LeakyReLU(1.0), nn.Conv2d(8, 5, 1),
    )  # fmt: skip
    network = capture(Model(part).eval(), torch.randn(2, 4, 8, 8))
    x = torch.randn(4, 4, 8, 8)
    before = network(x)
    collapse_(network, "part", images(4, 8, 8, batch=32), ridge=1e-9)
    assert torch.allclose(network(x), before, atol=1e-4)
    assert network.get_submodule("part.collapsed").groups == 1


# ---------------------------------------------------------------------- the surgery


def test_the_block_goes_and_the_rectifier_after_it_stays(
    small: Network, loader: list[Tensor]
) -> None:
    network = changed(collapse_, small.copy(), ["layer1.1", "layer2.0"], loader)
    sites = [site.name for site in network.sites]
    assert "layer1.1.relu" not in sites  # between the two convolutions
    assert "layer1.1.relu_1" in sites
    assert len(sites) == len(small.sites) - 2
    names = [n for n, _ in network.named_parameters() if n.startswith(("layer1.1.", "layer2.0."))]
    assert names == [
        f"{block}.{layer}.{part}"
        for block in ("layer1.1", "layer2.0")
        for layer in ("collapsed", "collapsed_norm")
        for part in ("weight", "bias")
    ]
    assert "layer2.0" not in by_name(network)
    kept = small.state_dict()
    for key, value in network.state_dict().items():
        assert "collapsed" in key or torch.equal(value, kept[key])
    assert network(loader[0]).shape == small(loader[0]).shape


def test_untouched_parameters_are_the_same_objects(small: Network, loader: list[Tensor]) -> None:
    network = small.copy()
    before = dict(network.named_parameters())
    collapse_(network, "layer1.1", loader)
    after = dict(network.named_parameters())
    assert all(after[name] is before[name] for name in set(after) & set(before))


def test_it_is_the_best_layer_for_the_output(small: Network, loader: list[Tensor]) -> None:
    network = changed(collapse_, small.copy(), "layer3.1", loader, ridge=0.0)
    layer = network.get_submodule("layer3.1.collapsed")
    x, y = [], []
    twin = small.copy()
    stretch = twin.stretch("layer3.1")
    handle = listen(
        twin,
        [Tap(stretch.end, (stretch.start, stretch.end), lambda a, b: (x.append(a), y.append(b)))],
    )
    with torch.no_grad():
        for batch in loader:
            twin(batch)
        handle.remove()
        inputs, outputs = torch.cat(x), torch.cat(y)
        patches = nn.functional.unfold(inputs, 3, padding=1).transpose(1, 2).reshape(-1, 144)
        design = torch.cat([patches, torch.ones(len(patches), 1)], 1).double()
        targets = outputs.permute(0, 2, 3, 1).reshape(-1, 16).double()
        best = design @ torch.linalg.lstsq(design, targets, driver="gelsd").solution
        own = layer(inputs).permute(0, 2, 3, 1).reshape(-1, 16).double()
    assert float((own - targets).square().sum()) == pytest.approx(
        float((best - targets).square().sum()), rel=1e-3
    )


def test_several_are_fitted_to_what_was_there_before_the_call(
    small: Network, loader: list[Tensor]
) -> None:
    together = changed(collapse_, small.copy(), ["layer1.2", "layer1.1"], loader)
    assert together.plan.names("collapse") == ["layer1.1", "layer1.2"]  # in forward order
    apart = small.copy()
    for name in ("layer1.1", "layer1.2"):
        collapse_(apart, name, loader)

    def error(network: Network) -> float:
        ends: list[list[Tensor]] = []
        for net in (small, network):
            node = net.node_of("layer1.2.relu_1")
            found: list[Tensor] = []
            handle = listen(net, [Tap(node, (node.all_input_nodes[0],), found.append)])
            with torch.no_grad():
                for batch in loader:
                    net(batch)
            handle.remove()
            ends.append(found)
        return sum(float((a - b).square().sum()) for a, b in zip(*ends, strict=True))

    assert error(together) < error(apart)


def test_it_runs_in_training_and_learns(small: Network, loader: list[Tensor]) -> None:
    network = changed(collapse_, small.copy().train(), "layer1.1", loader)
    assert network.training
    assert network.get_submodule("layer1.1.collapsed").training
    network(loader[0]).square().mean().backward()
    assert network.get_parameter("layer1.1.collapsed.weight").grad is not None


def test_a_linearized_block_collapses_too(small: Network, loader: list[Tensor]) -> None:
    network = changed(linearize_, small.copy(), "layer1.1.relu", how="identity")
    collapse_(network, "layer1.1", loader, kernel_size=5)
    assert network.get_submodule("layer1.1.collapsed").kernel_size == (5, 5)


def test_pairs_may_be_collapsed_one_after_the_other() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    network = capture(model, torch.randn(2, 3, 8, 8))
    data = images(3, 8, 8)
    assert list(by_name(network)) == ["0..2", "2..4", "4..6"]
    with pytest.raises(ConfigError, match=r"'0\.\.2' and '2\.\.4' overlap"):
        collapse_(network, ["0..2", "2..4"], data)
    collapse_(network, "0..2", data)
    assert list(by_name(network)) == ["0.collapsed..4", "4..6"]
    collapse_(network, "0.collapsed..4", data)
    assert [str(n.target) for n in network.graph.nodes if n.op == "call_module"] == [
        "0.collapsed.collapsed", "5", "6", "7", "10"
    ]  # fmt: skip


# ---------------------------------------------------------------------- saving and loading


def test_a_collapsed_resnet_is_saved_and_loaded(loader: list[Tensor], tmp_path: Path) -> None:
    network = resnet20()
    collapse_(network, ["layer2.0", "layer3.2"], loader)
    linearize_(network, "layer1.0.relu", how="identity")
    collapse_(network, "layer1.1", loader, kernel_size=1)
    same_after_loading(network, loader[0], tmp_path / "saved")


def test_a_downsampling_block_with_a_convolution_in_its_shortcut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = digits_resnet().eval()
    network = capture(model, torch.randn(2, 1, 8, 8)).copy()
    data = images(1, 8, 8, batch=32)
    collapse_(network, "layer2.0", data)
    new = network.get_submodule("layer2.0.collapsed")
    assert (new.kernel_size, new.stride, new.padding) == ((3, 3), (2, 2), (1, 1))
    same_after_loading(network, data[0], tmp_path / "saved")


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "stretch", "kernel"),
    [
        (bottlenecks, "layer1.1", 1),  # fewer positions needed
        (inverted_residuals, "features.2", None),
        (plain_convolutions, "features.4..features.7", None),
    ],
)
def test_architectures_shapes_and_replay(
    make: Callable[[], nn.Module], stretch: str, kernel: int | None, tmp_path: Path
) -> None:
    network = capture(make(), torch.randn(2, 3, 32, 32), check=False).copy()
    data = images(3, 32, 32, count=2, batch=40)
    shape = network.stretch(stretch).end.meta["shape"]
    collapse_(network, stretch, data, kernel_size=kernel)
    assert stretch not in by_name(network)
    path = list(network.plan.operations[-1].options["layers"])[-1]
    assert network.node_of(path).meta["shape"] == shape
    same_after_loading(network, data[0][:2], tmp_path / "saved")


def test_the_new_norm_changes_nothing_until_it_is_trained(
    small: Network, loader: list[Tensor]
) -> None:
    network = changed(collapse_, small.copy(), "layer1.1", loader)
    bare = network.copy()
    bare.replace_module("layer1.1.collapsed_norm", nn.Identity())
    with torch.no_grad():
        torch.testing.assert_close(network(loader[0]), bare(loader[0]), rtol=1e-4, atol=1e-5)
        given: list[Tensor] = []
        layer = network.get_submodule("layer1.1.collapsed")
        layer.register_forward_hook(lambda module, inputs, output: given.append(output))
        network(torch.cat(loader))
    norm = network.get_submodule("layer1.1.collapsed_norm")
    # Its statistics are those of the data, so training starts from about the same values.
    torch.testing.assert_close(norm.running_mean, given[0].mean((0, 2, 3)), rtol=0.1, atol=0.02)
    torch.testing.assert_close(norm.running_var, given[0].var((0, 2, 3)), rtol=0.1, atol=1e-3)


# ---------------------------------------------------------------------- errors leave all as it was


@pytest.mark.parametrize(
    ("names", "options", "error", "message"),
    [
        ("layer1.7", {}, NameNotFoundError, "unknown block or stretch .* 'layer1.7': did you mean"),
        (["layer1.1", "layer1.1"], {}, ConfigError, "named twice"),
        ("layer1.1", {"kernel_size": 0}, ConfigError, "give at least 1"),
        ("layer1.1", {"kernel_size": 2}, ConfigError, "2×2 kernel cannot"),
        ("layer1.1", {"ridge": -1.0}, ConfigError, "ridge is -1"),
        (["layer1.1", "layer3.1"], {"samples": 2}, ConfigError, "give more samples"),
    ],
)
def test_errors_leave_the_network_as_it_was(
    small: Network,
    loader: list[Tensor],
    names: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    network = small.copy()
    before, code = network(loader[0]), network.code
    with pytest.raises(error, match=message):
        collapse_(network, names, loader, **options)
    assert torch.equal(network(loader[0]), before)
    assert network.code == code
    assert not network.plan.operations
    assert set(network.state_dict()) == set(small.state_dict())
    assert [site.name for site in network.sites] == [site.name for site in small.sites]


def test_no_data_and_broken_data(small: Network, loader: list[Tensor]) -> None:
    with pytest.raises(DataError, match="empty"):
        collapse_(small.copy(), "layer1.1", [])
    with pytest.raises(TrainingError, match=r"activations at 'layer1\.1' are not finite"):
        collapse_(small.copy(), "layer1.1", [loader[0] / 0.0])
