"""Collapse: which stretches there are, and that one fitted layer takes a stretch's place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, DataError, NameNotFoundError, ShoalError, TrainingError
from shoal.models import cifar_resnet20, compat, digits_resnet
from shoal.network import Network, capture
from shoal.network.listen import Tap, listen
from shoal.store import load, save
from shoal.surgery import linearize_
from shoal.surgery.collapse import collapse_
from shoal.surgery.stretches import Stretch, find_stretch, find_stretches, with_kernel


def images(*size: int, count: int = 3, batch: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *size, generator=generator) for _ in range(count)]


def torchvision_models() -> Any:
    torch.manual_seed(0)
    try:
        return compat.import_torchvision().models
    except ShoalError as error:
        pytest.skip(str(error))


def torchvision_model(name: str) -> nn.Module:
    return getattr(torchvision_models(), name)(weights=None).eval()


def timm_model(name: str, **options: Any) -> nn.Module:
    try:
        library = compat.import_timm()
    except ShoalError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    return library.create_model(name, pretrained=False, **options).eval()


def by_name(network: Network) -> dict[str, Stretch]:
    return {stretch.name: stretch for stretch in find_stretches(network)}


@pytest.fixture(scope="module")
def small() -> Network:
    torch.manual_seed(0)
    model = cifar_resnet20(width=4).eval()
    return capture(model, torch.randn(2, 3, 16, 16))


@pytest.fixture(scope="module")
def loader() -> list[Tensor]:
    return images(3, 16, 16, count=4, batch=16)


class Pair(nn.Module):
    """Two convolutions and a rectifier that is never OFF: one 5x5 convolution in all."""

    def __init__(self, stride: int = 1, skip: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=stride, bias=False)
        self.relu = nn.LeakyReLU(1.0)
        self.conv2 = nn.Conv2d(4, 5, 3)
        kernel = 3 + 2 * stride  # of both convolutions together
        self.shortcut = nn.Conv2d(3, 5, kernel, stride=stride) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        return out if self.shortcut is None else out + self.shortcut(x)


class Model(nn.Module):
    """A part between a first layer and a head."""

    def __init__(self, part: nn.Module, width: int = 5) -> None:
        super().__init__()
        self.part = part
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.part(x)).mean((2, 3)))


# ---------------------------------------------------------------------- finding


def test_blocks_of_a_cifar_resnet_keep_their_names_and_change_shape_where_they_do(
    small: Network,
) -> None:
    found = by_name(small)
    assert list(found) == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)]
    assert all(stretch.kernel_size == (3, 3) for stretch in found.values())
    down = found["layer2.0"]
    assert (down.in_channels, down.out_channels, down.stride) == (4, 8, (2, 2))
    assert down.end.meta["shape"] == (None, 8, 8, 8)


def test_imagenet_resnets_with_basic_blocks_and_bottlenecks() -> None:
    network = capture(torchvision_model("resnet50"), torch.randn(2, 3, 64, 64), check=False)
    found = by_name(network)
    assert len(found) == 16
    assert found["layer2.0"].stride == (2, 2)
    assert found["layer3.1"].kernel_size == (3, 3)
    # 2,048 channels and nine weights each are more than a fit in 2 GiB can have.
    assert found["layer4.1"].kernel_size == (1, 1)
    assert all(s.shape.columns <= 10_240 for s in found.values())


def test_inverted_residuals_with_and_without_skip() -> None:
    network = capture(torchvision_model("mobilenet_v2"), torch.randn(2, 3, 64, 64), check=False)
    found = by_name(network)
    assert list(found) == [f"features.{i}" for i in range(1, 18)]
    assert all(stretch.kernel_size == (3, 3) for stretch in found.values())
    assert {n for n, s in found.items() if s.stride == (2, 2)} == {
        "features.2", "features.4", "features.7", "features.14"
    }  # fmt: skip


def test_pairs_of_vgg_do_not_cross_a_pooling() -> None:
    network = capture(torchvision_model("vgg11_bn"), torch.randn(2, 3, 64, 64), check=False)
    names = list(by_name(network))
    assert names == [
        "features.8..features.11",
        "features.15..features.18",
        "features.22..features.25",
        "classifier.3..classifier.6",
    ]


def small_swin() -> nn.Module:
    library = torchvision_models()
    return library.SwinTransformer([4, 4], 24, [2, 2], [2, 2], [4, 4], num_classes=5)


def small_convnext() -> nn.Module:
    library = torchvision_models()
    settings = [
        library.convnext.CNBlockConfig(8, 16, 1),
        library.convnext.CNBlockConfig(16, None, 1),
    ]
    return library.ConvNeXt(settings, num_classes=5)


def small_vit() -> nn.Module:
    return timm_model("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8)


def small_conv_mlp() -> nn.Module:
    return timm_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))


@pytest.mark.parametrize(
    ("make", "names", "kind"),
    [
        (small_swin, [f"features.{stage}.{i}.mlp" for stage in (1, 3) for i in (0, 1)], "linear"),
        (
            small_convnext,
            [f"features.{s}.0.block.3..features.{s}.0.block.5" for s in (1, 3)],
            "linear",
        ),
        (small_vit, ["blocks.0.mlp", "blocks.1.mlp"], "linear"),
        (small_conv_mlp, [f"stages.{i}.blocks.0.mlp" for i in range(4)], "conv"),
    ],
    ids=["swin", "convnext", "vit", "convnext with 1x1 convolutions"],
)
def test_mlps_of_transformers_leave_the_skip_outside(
    make: Callable[[], nn.Module], names: list[str], kind: str, tmp_path: Path
) -> None:
    model = make().eval()
    network = capture(model, torch.randn(2, 3, 32, 32)).copy()
    found = by_name(network)
    assert list(found) == names
    for stretch in found.values():
        assert stretch.kind == kind
        assert stretch.in_channels == stretch.out_channels
        assert stretch.kernel_size in ((), (1, 1))
        assert len(stretch.layers) == 2
    data = images(3, 32, 32, batch=32, count=8)
    collapse_(network, names, data)
    assert not find_stretches(network)
    same_after_loading(network, model, data[0][:2], tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "count", "kind"),
    [
        ("swin_t", "features.1.0.mlp", 12, "linear"),
        ("convnext_tiny", "features.1.0.block.3..features.1.0.block.5", 18, "linear"),
        ("timm:vit_tiny_patch16_224", "blocks.0.mlp", 12, "linear"),
        ("timm:convnext_atto", "stages.0.blocks.0.mlp", 12, "conv"),
    ],
)
def test_every_mlp_of_the_published_transformers_is_found(
    name: str, first: str, count: int, kind: str
) -> None:
    model = timm_model(name[5:]) if name.startswith("timm:") else torchvision_model(name)
    side = 224 if "vit" in name else 64
    found = find_stretches(capture(model, torch.randn(2, 3, side, side), check=False))
    assert (found[0].name, len(found)) == (first, count)
    assert {stretch.kind for stretch in found} == {kind}


def test_a_kernel_grows_until_the_output_has_its_size() -> None:
    network = capture(Model(Pair()), torch.randn(2, 3, 12, 12))
    assert find_stretch(network, "part").kernel_size == (5, 5)
    with pytest.raises(ConfigError, match="a 3×3 kernel cannot give 'part' its output size"):
        with_kernel(find_stretch(network, "part"), 3)
    assert with_kernel(find_stretch(network, "part"), 7).shape.padding == (1, 1)


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
    network = collapse_(small.copy(), ["layer1.1", "layer2.0"], loader)
    sites = [site.name for site in network.sites]
    assert "layer1.1.relu" not in sites  # between the two convolutions
    assert "layer1.1.relu_1" in sites
    assert len(sites) == len(small.sites) - 2
    gone = [key for key in network.state_dict() if key.startswith(("layer1.1.", "layer2.0."))]
    assert gone == [
        f"{block}.collapsed.{part}"
        for block in ("layer1.1", "layer2.0")
        for part in ("weight", "bias")
    ]
    assert "layer2.0" not in by_name(network)
    kept = small.state_dict()
    for key, value in network.state_dict().items():
        assert key in gone or torch.equal(value, kept[key])
    assert network(loader[0]).shape == small(loader[0]).shape


def test_untouched_parameters_are_the_same_objects(small: Network, loader: list[Tensor]) -> None:
    network = small.copy()
    before = dict(network.named_parameters())
    collapse_(network, "layer1.1", loader)
    after = dict(network.named_parameters())
    assert all(after[name] is before[name] for name in set(after) & set(before))


def test_it_is_the_best_layer_for_the_output(small: Network, loader: list[Tensor]) -> None:
    network = collapse_(small.copy(), "layer3.1", loader, ridge=0.0)
    layer = network.get_submodule("layer3.1.collapsed")
    x, y = [], []
    twin = small.copy()
    stretch = find_stretch(twin, "layer3.1")
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
    together = collapse_(small.copy(), ["layer1.2", "layer1.1"], loader)
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
    network = collapse_(small.copy().train(), "layer1.1", loader)
    assert network.training
    assert network.get_submodule("layer1.1.collapsed").training
    network(loader[0]).square().mean().backward()
    assert network.get_parameter("layer1.1.collapsed.weight").grad is not None


def test_a_linearized_block_collapses_too(small: Network, loader: list[Tensor]) -> None:
    network = linearize_(small.copy(), "layer1.1.relu", how="identity")
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


def same_after_loading(network: Network, model: nn.Module, x: Tensor, folder: Path) -> None:
    save(network, folder)
    again = load(folder, model=model)
    assert again.plan.operations == load(folder, model=model).plan.operations
    with torch.no_grad():
        assert torch.equal(again(x), network.eval()(x))
    assert set(again.state_dict()) == set(network.state_dict())


def test_a_collapsed_resnet_is_saved_and_loaded(loader: list[Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = cifar_resnet20(width=4).eval()
    network = capture(model, torch.randn(2, 3, 16, 16)).copy()
    collapse_(network, ["layer2.0", "layer3.2"], loader)
    linearize_(network, "layer1.0.relu", how="identity")
    collapse_(network, "layer1.1", loader, kernel_size=1)
    same_after_loading(network, model, loader[0], tmp_path / "saved")


def test_a_downsampling_block_with_a_convolution_in_its_shortcut(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = digits_resnet().eval()
    network = capture(model, torch.randn(2, 1, 8, 8)).copy()
    data = images(1, 8, 8, batch=32)
    collapse_(network, "layer2.0", data)
    new = network.get_submodule("layer2.0.collapsed")
    assert (new.kernel_size, new.stride, new.padding) == ((3, 3), (2, 2), (1, 1))
    same_after_loading(network, model, data[0], tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "stretch", "side"),
    [
        ("resnet50", "layer1.1", 32),
        ("mobilenet_v2", "features.2", 64),
        ("vgg11_bn", "features.8..features.11", 32),
    ],
)
def test_architectures_shapes_and_replay(
    name: str, stretch: str, side: int, tmp_path: Path
) -> None:
    model = torchvision_model(name)
    network = capture(model, torch.randn(2, 3, side, side), check=False).copy()
    data = images(3, side, side, count=2, batch=40)
    kernel = 1 if name == "resnet50" else None  # fewer positions needed
    shape = find_stretch(network, stretch).end.meta["shape"]
    collapse_(network, stretch, data, kernel_size=kernel)
    assert stretch not in by_name(network)
    path = network.plan.operations[-1].options["path"]
    assert network.node_of(path).meta["shape"] == shape
    same_after_loading(network, model, data[0][:2], tmp_path / "saved")


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
