"""Merging known networks: what becomes of them, and that nothing changes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from collapse_checks import torchvision_models
from shoal.errors import PlanError
from shoal.measure import Latency
from shoal.merge.algebra import then
from shoal.merge.conv_map import ConvMap
from shoal.merge.cut import LatencyCosts
from shoal.merge.loading import load
from shoal.merge.merge import merge_
from shoal.merge.report import MergeReport
from shoal.models import cifar_resnet20
from shoal.network import Network, capture
from shoal.network.saving import save
from shoal.report.merge_tables import merge_tables
from shoal.surgery import collapse_, linearize_


def with_statistics(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
    return model.eval()


def layers_of(network: Network, *kinds: type[nn.Module]) -> list[str]:
    called = [str(n.target) for n in network.graph.nodes if n.op == "call_module"]
    return [path for path in called if isinstance(network.get_submodule(path), kinds)]


def error(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / a.abs().max()).detach())


class Block(nn.Module):
    """A residual block whose padding is all in the first convolution, ready to merge."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class Mlp(nn.Module):
    """Two linear layers with LayerScale and dropout around them, on tokens × channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 24), nn.Linear(24, 6)
        self.act, self.drop = nn.GELU(), nn.Dropout(0.1)
        self.gamma = nn.Parameter(torch.randn(6))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.gamma * self.drop(self.fc2(self.drop(self.act(self.fc1(x))))))


class Inverted(nn.Module):
    """Expand, depthwise, project: both rectifiers gone it is one dense convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(4, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.project = nn.Conv2d(12, 4, 1)
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.act(self.depthwise(self.act(self.expand(x)))))


def merged(model: nn.Module, x: Tensor, sites: bool = True) -> tuple[Network, Network]:
    network = capture(with_statistics(model).double(), x.double()).copy()
    if sites:
        linearize_(network, [site.name for site in network.sites], loader=[x.double()])
    after = network.copy()
    report = merge_(after, policy="always")
    assert report.max_rel_error <= 1e-10
    return network, after


def test_a_residual_block_with_its_skip_is_one_convolution() -> None:
    x = torch.randn(3, 4, 9, 9)
    before, after = merged(nn.Sequential(Block(), Block()), x)
    assert len(layers_of(after, nn.Conv2d)) == 2
    assert not any("add" in str(node.target) for node in after.graph.nodes)
    big = torch.randn(2, 4, 20, 13, dtype=torch.float64)
    assert error(before(big), after(big)) <= 1e-10


def test_an_mlp_is_one_linear_layer_with_its_scale_and_skip() -> None:
    x = torch.randn(3, 5, 6)
    before, after = merged(Mlp(), x)
    assert len(layers_of(after, nn.Linear)) == 1
    assert error(before(x.double()), after(x.double())) <= 1e-10


def test_a_layer_with_less_work_than_one_of_its_parts_needs_no_measurement_to_be_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def busy(costs: LatencyCosts, found: ConvMap, node: object) -> float:
        return 20.0 if found.weight.shape == (6, 6) else 1.0  # of the composed layer only

    monkeypatch.setattr(LatencyCosts, "map_ms", busy)
    monkeypatch.setattr("shoal.merge.merge._SLOWER", 100.0)
    network = capture(Mlp().eval(), torch.randn(3, 5, 6)).copy()
    linearize_(network, ["act"], how="identity")
    merge_(network)
    assert len(layers_of(network, nn.Linear)) == 1


@pytest.mark.parametrize("policy", ["always", "fold"])
def test_a_linear_layer_after_a_flattening_stays_one(policy: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7), nn.ReLU(),
        nn.Linear(7, 5),
    )  # fmt: skip
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    network = capture(model.double().eval(), x).copy()
    linearize_(network, [network.sites[1].name], loader=[x])
    before = network(x)
    report = merge_(network, policy=policy)
    assert len(layers_of(network, nn.Conv2d)) == 1
    assert len(layers_of(network, nn.Linear)) == (1 if policy == "always" else 2)
    assert report.max_rel_error <= 1e-10
    assert error(before, network(x)) <= 1e-10


class Pooled(nn.Module):
    """A head as MobileNet has it: a wide 1×1 convolution, the mean, a linear layer."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.act = nn.ReLU()
        self.wide, self.bn = nn.Conv2d(4, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.late, self.pool = nn.ReLU6(), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.late(self.bn(self.wide(self.act(self.conv(x)))))
        if self.how == "mean":
            return self.fc(x.mean((2, 3)))
        pooled = self.pool(x)
        return self.fc(pooled.view(pooled.size(0), -1) if self.how == "view" else pooled.flatten(1))


@pytest.mark.parametrize("how", ["mean", "view", "flatten"])
def test_what_is_linear_before_a_mean_comes_after_it_and_joins_the_head(
    how: str, tmp_path: Path
) -> None:
    x = torch.randn(3, 3, 13, 13)
    model = with_statistics(Pooled(how))
    network = capture(model, x).copy()
    linearize_(network, "late", loader=[x])
    folded, after = network.copy(), network.copy()
    merge_(folded, policy="fold")
    report = merge_(after, policy="always")
    assert report.max_rel_error <= 1e-5
    assert (report.depth_before, report.depth_after) == (3, 2)
    # the convolution, and 4 → 5 once per image; folding alone leaves layers where they are
    assert report.macs_after == 36 * 3 * 4 * 9 + 4 * 5
    assert len(layers_of(folded, nn.Conv2d)) == 2
    assert {name.partition(".")[0] for name, _ in after.named_parameters()} == {"conv", "fc"}
    save(after, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again(x), after(x))


def test_a_view_that_flattens_is_crossed_and_another_is_not() -> None:
    class Views(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(size, 4)
            self.size = size

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(-1, self.size))

    x = torch.randn(2, 2, 6, 6)
    for size, depth in ((48, 1), (24, 2)):  # the second puts two rows of an image in one sample
        before, after = merged(Views(size), x)
        assert len(layers_of(after, nn.Conv2d, nn.Linear)) == depth
        assert error(before(x.double()), after(x.double())) <= 1e-10


class FlatResidual(nn.Module):
    """A residual MLP on a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 8)
        self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8)
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x.flatten(1))
        y = y + self.d(torch.relu(self.b(y)))
        return self.bn(self.c(y) + self.b(y))


class Doubled(nn.Module):
    """Tokens with a sum of a tensor and itself between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2 = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.l1(x)
        return self.l2(y + torch.relu(y))


class ReadOutside(nn.Module):
    """A branch of a sum that is read elsewhere too, and a norm after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        r = torch.tanh(x)
        a = self.conv1(r)
        return torch.relu(self.bn(a + self.conv2(r))) + torch.sigmoid(a)


def one_position(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers, nn.Flatten(), nn.Linear(4, 3))


AWKWARD = {
    "a residual MLP after a flattening": (FlatResidual(), (1, 4, 4)),
    "tokens added to themselves": (Doubled(), (7, 6)),
    "a branch read outside": (ReadOutside(), (3, 9, 9)),
    "one position, padded": (one_position(nn.Conv2d(4, 4, 3, padding=1)), (4, 6, 6)),
    "one position, a bias before padding": (
        one_position(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)), (4, 6, 6),
    ),
    "one position becomes nine": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 3, 3, padding=2), nn.Flatten(),
                      nn.Linear(27, 3)), (2, 6, 6),
    ),
    "expand, depthwise, project": (Inverted(), (4, 9, 9)),
    "depthwise, then 1×1, then depthwise": (
        nn.Sequential(nn.Conv2d(6, 6, 3, groups=6, dilation=2), nn.Conv2d(6, 8, 1, stride=2),
                      nn.Conv2d(8, 8, 3, groups=8)), (6, 17, 17),
    ),
}  # fmt: skip


@pytest.mark.parametrize("policy", ["always", "fold"])
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_networks_merge_once_and_twice_and_reload(
    name: str, policy: str, tmp_path: Path
) -> None:
    model, shape = AWKWARD[name]
    x = torch.randn(3, *shape, dtype=torch.float64)
    network = capture(with_statistics(model).double(), x).copy()
    linearize_(network, [site.name for site in network.sites], how="identity")
    after = network.copy()
    report = merge_(after, policy=policy)
    assert report.max_rel_error <= 1e-10
    assert not any("changed the output" in kept.reason for kept in report.kept)
    assert error(network(x), after(x)) <= 1e-10
    shapes = [n.meta["shape"][1:] for n in after.graph.nodes if n.op == "call_module"]
    seen: list[tuple[int, ...]] = []
    for node in after.graph.nodes:
        if node.op == "call_module":
            module = after.get_submodule(str(node.target))
            module.register_forward_hook(lambda m, i, o: seen.append(tuple(o.shape[1:])))
    after(x)
    assert seen == shapes  # what later operations go by
    code = after.code
    merge_(after, policy=policy)
    assert after.code == code
    save(after, tmp_path)
    assert torch.equal(load(tmp_path).double()(x), after(x))


class Mixed(nn.Module):
    """Layers in float64 and, after a cast, in float32; each pair is linear in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8).double(), nn.Linear(8, 5).double()
        self.c, self.d = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x)).float()))


def test_parts_of_different_number_types_merge_apart_and_keep_theirs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, dtype=torch.float64)
    network = capture(Mixed().eval(), x)
    after = network.copy()
    report = merge_(after, policy="always")
    assert (report.depth_before, report.depth_after) == (4, 2)
    assert report.max_rel_error <= 1e-5
    assert error(network(x), after(x)) <= 1e-5
    layers = [after.get_submodule(path) for path in layers_of(after, nn.Linear)]
    assert [next(layer.parameters()).dtype for layer in layers] == [torch.float64, torch.float32]


@pytest.mark.parametrize("collapse", [False, True])
def test_merging_between_other_operations_is_replayed(collapse: bool, tmp_path: Path) -> None:
    """Names of nodes depend on what went before; the plan must not."""
    layers = []
    for i in range(4):
        layers += [nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    model = with_statistics(nn.Sequential(*layers))
    x = torch.randn(16, 3, 8, 8)
    network = capture(model, x).copy()
    merge_(network, policy="fold")
    linearize_(network, ["2", "5"], loader=[x])
    if collapse:
        collapse_(network, "6..9", [x])
    merge_(network, policy="fold")
    save(network, tmp_path)
    again = load(tmp_path)
    assert torch.equal(again(x), network.eval()(x))


def test_a_wide_norm_before_a_layer_is_folded_in_little_memory() -> None:
    """A scale of 20,000 features is no matrix of 20,000 × 20,000."""
    wide = ConvMap.affine(torch.rand(20_000), torch.rand(20_000), 0)
    head = ConvMap(torch.rand(3, 20_000).double(), torch.zeros(3).double(), (), (), (), 1)
    composed = then(wide, head)
    torch.testing.assert_close(composed.weight, head.weight * wide.weight.T)
    torch.testing.assert_close(composed.bias, head.weight @ wide.bias)


@pytest.mark.long
def test_the_mlps_of_a_swin_are_one_linear_layer_each() -> None:
    swin = torchvision_models().SwinTransformer
    model = swin([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    network = capture(model, images).copy()
    linearize_(network, [site.name for site in network.sites], loader=[images])
    report = merge_(network, policy="always")
    assert report.max_rel_error <= 1e-5
    mlps = [path for path in layers_of(network, nn.Linear) if ".mlp." in path]
    assert mlps == [f"features.{stage}.0.mlp.3" for stage in (1, 3)]


@pytest.mark.parametrize(
    ("first", "second", "within"),
    [
        (nn.Linear(6, 24), nn.Linear(24, 6), True),
        (nn.Linear(24, 6), nn.Linear(6, 24), False),  # both are narrower than what they make
        (nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1), True),
        (nn.Conv2d(4, 8, 1, stride=2), nn.Conv2d(8, 8, 1), True),
        (nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3), False),
        (nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8), False),
    ],
)
def test_a_composed_layer_may_do_a_part_of_the_work_of_a_part(
    first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear, within: bool
) -> None:
    maps = [ConvMap.of_layer(layer, (0, 0)) for layer in (first, second)]
    assert any(then(*maps).works_within(part) for part in maps) is within


def test_a_bias_before_padding_is_carried_by_a_channel_of_ones() -> None:
    x = torch.randn(3, 4, 8, 8)
    before, after = merged(Inverted(), x)
    (path,) = layers_of(after, nn.Conv2d)
    conv = after.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    assert (conv.in_channels, conv.groups, conv.kernel_size) == (5, 1, (3, 3))
    small = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert error(before(small), after(small)) <= 1e-10


def test_padding_between_two_convolutions_keeps_them_apart_and_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
    network = capture(model.eval(), torch.randn(2, 3, 8, 8)).copy()
    linearize_(network, ["1"], how="identity")
    report = merge_(network, policy="always")
    assert len(layers_of(network, nn.Conv2d)) == 2
    assert any("pads its input" in kept.reason for kept in report.kept)


@pytest.mark.long
def test_batch_norms_are_folded_and_the_network_saves_and_loads(tmp_path: Path) -> None:
    model = with_statistics(cifar_resnet20())
    x = torch.randn(4, 3, 32, 32)
    network = capture(model, x).copy()
    network.plan.base = "shoal:cifar_resnet20"
    linearize_(network, ["layer1.0.relu", "layer3.2.relu_1"], loader=[x])
    before = network.copy()
    report = merge_(network, policy="fold")
    assert not layers_of(network, nn.BatchNorm2d)
    assert report.max_rel_error <= 1e-5
    assert report.max_rel_error_float64 is not None
    assert report.max_rel_error_float64 <= 1e-10
    assert error(before(x), network(x)) <= 1e-5
    save(network, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert torch.equal(again(x), network(x))
    assert set(again.state_dict()) == set(network.state_dict())


class Joined(nn.Module):
    """Two branches that cannot become one layer, their sum scaled and shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1))
        self.second = nn.Conv2d(4, 6, 1)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.bn(self.first(x) - self.second(x)))


@pytest.mark.parametrize("policy", ["always", "fold"])
def test_a_norm_after_a_sum_goes_into_both_branches(policy: str, tmp_path: Path) -> None:
    x = torch.randn(3, 4, 9, 9, dtype=torch.float64)
    base = capture(with_statistics(Joined()).double(), x).copy()
    network = base.copy()
    report = merge_(network, policy=policy)
    assert not layers_of(network, nn.BatchNorm2d)
    assert len(layers_of(network, nn.Conv2d)) == 3
    assert error(base(x), network(x)) <= 1e-10
    assert not any("changed the output" in kept.reason for kept in report.kept)
    assert ("bn", "nothing") in {(item.layers[0], item.after) for item in report.merged}
    save(network, tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert error(again(x), network(x)) <= 1e-14


# ---------------------------------------------------------------------- the report


@pytest.mark.long
def test_the_report_says_why_for_every_boundary_and_every_layer_kept() -> None:
    model = with_statistics(cifar_resnet20())
    x = torch.randn(2, 3, 32, 32)
    network = capture(model, x).copy()
    linearize_(network, ["layer1.0.relu", "layer1.0.relu_1"], loader=[x])
    report = merge_(network, policy="always")
    assert all(found.begins and found.ends and found.layers for found in report.boundaries)
    assert all(kept.reason and kept.layers for kept in report.kept)
    known = {found.region for found in report.boundaries}
    assert {item.region for item in (*report.merged, *report.kept)} <= known
    ends = {found.layers[-1]: found.ends for found in report.boundaries}
    assert "adds a tensor to it" in ends["layer1.1.bn2"]
    assert ends["layer1.1.bn1"] == "'layer1.1.relu' is not linear in it"
    begins = {found.layers[0]: found.begins for found in report.boundaries}
    assert begins["conv1"] == "it is the network's input"
    apart = {kept.layers: kept.reason for kept in report.kept}
    assert "pads its input" in apart[("layer1.0.conv1",)]


def test_a_norm_that_stays_is_among_what_was_kept() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1))
    network = capture(with_statistics(model), torch.randn(2, 3, 8, 8)).copy()
    (kept,) = merge_(network, policy="fold").kept
    assert kept.layers == ("0",)
    assert "a channel of ones" in kept.reason


def test_layers_on_another_dimension_are_told_from_what_is_not_linear() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(8, 8))
    network = capture(model.eval(), torch.randn(2, 3, 8, 8)).copy()
    first, second = merge_(network, policy="always").boundaries
    assert first.ends == "'1' has its channels in another dimension"
    assert second.begins == "'0' has its channels in another dimension"


def test_folding_alone_says_what_it_left_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6))
    network = capture(model.eval(), torch.randn(2, 4)).copy()
    (kept,) = merge_(network.copy(), policy="fold").kept
    assert (kept.layers, kept.reason) == (("0",), "only scales and shifts were to be folded")
    assert not merge_(network, policy="always").kept


def test_the_report_is_read_as_it_was_written_and_shown_as_tables() -> None:
    x = torch.randn(2, 4, 9, 9)
    apart = nn.Conv2d(4, 4, 3, padding=1)
    network = capture(with_statistics(nn.Sequential(Block(), apart)), x).copy()
    linearize_(network, [network.sites[0].name], loader=[x])
    report = merge_(network, policy="always")
    assert MergeReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report
    with pytest.raises(PlanError, match="cannot be read"):
        MergeReport.from_dict({"merged": [{}]})
    console = Console(file=io.StringIO(), width=250)
    console.print(merge_tables(report))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("conv 5×5", "Conv2d 3×3", "kept apart", "network's output", "MACs", "float64"):
        assert text in shown, text


def test_merging_leaves_no_unused_tensor() -> None:
    x = torch.randn(2, 4, 9, 9)
    _, after = merged(nn.Sequential(Block(), nn.BatchNorm2d(4)), x)
    used = {str(n.target) for n in after.graph.nodes if n.op in ("call_module", "get_attr")}
    assert {name.rpartition(".")[0] for name in after.state_dict()} <= used


def test_a_network_that_is_used_twice_inside_keeps_its_shared_tensor() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return torch.relu(self.b(y)) + torch.sigmoid(self.c(y))

    x = torch.randn(2, 3, 5, 5)
    before, after = merged(Shared(), x, sites=False)
    assert len(layers_of(after, nn.Conv2d)) == 3
    assert error(before(x.double()), after(x.double())) <= 1e-10


def test_a_rectifier_after_a_rectifier_goes() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.relu(self.conv(x)))

    network = capture(Doubled().eval(), torch.randn(2, 3, 4, 4)).copy()
    merge_(network, policy="fold")
    assert len(layers_of(network, nn.ReLU)) == 1


@pytest.mark.parametrize("policy", ["measured", "always", "fold"])
def test_merging_twice_changes_nothing(policy: str) -> None:
    x = torch.randn(2, 4, 9, 9)
    network = capture(with_statistics(nn.Sequential(Block(), Block())), x).copy()
    linearize_(network, [network.sites[0].name], loader=[x])
    merge_(network, policy=policy)
    code = network.code
    merge_(network, policy=policy)
    assert network.code == code


def test_a_join_that_was_slower_is_not_tried_again_until_something_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def timed(merged_ms: float) -> Any:
        def measure_latency(models: dict[str, Any], *_: Any, **__: Any) -> Any:
            times = {name: merged_ms if name == "merged" else 1.0 for name in models}
            return {k: Latency(t, t, t, 3, 1, 1, "cpu", 1, (t, t, t)) for k, t in times.items()}

        return measure_latency

    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LatencyCosts, "map_ms", lambda self, found, node: 1.0)
    monkeypatch.setattr("shoal.measure.deployment.measure_latency", timed(2.0))
    network = capture(Mlp().eval(), torch.randn(3, 5, 6)).copy()
    linearize_(network, ["act"], how="identity")
    report = merge_(network)
    assert any("measured to be slower" in kept.reason for kept in report.kept)
    assert len(layers_of(network, nn.Linear)) == 2
    save(network, tmp_path / "net")
    monkeypatch.setattr("shoal.measure.deployment.measure_latency", timed(0.5))
    for again in (network, load(tmp_path / "net")):
        code, done = again.code, list(again.plan.operations)
        report = merge_(again)
        assert any("measured to be slower" in kept.reason for kept in report.kept)
        assert (report.merged, again.code, again.plan.operations) == ([], code, done)
    merge_(network, batch=4)  # which was not measured
    assert len(layers_of(network, nn.Linear)) == 1


def test_a_join_is_not_undone_by_a_measurement_that_is_not_to_be_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure_latency(models: dict[str, Any], *_: Any, **__: Any) -> Any:
        times = {name: 2.0 if name == "merged" else 1.0 for name in models}
        given = {name: (t, t, t, 3, 1, 1, "cpu", 1, (t, t, t)) for name, t in times.items()}
        return {name: Latency(*v, disturbed="the machine was busy") for name, v in given.items()}

    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(LatencyCosts, "map_ms", lambda self, found, node: 1.0)
    monkeypatch.setattr("shoal.measure.deployment.measure_latency", measure_latency)
    network = capture(Mlp().eval(), torch.randn(3, 5, 6)).copy()
    linearize_(network, ["act"], how="identity")
    report = merge_(network)
    assert report.latency_doubt == "the machine was busy"
    assert len(layers_of(network, nn.Linear)) == 1  # as the layers' own costs have it
    assert "slower" not in network.plan.operations[-1].options
    written = report.to_dict()
    assert MergeReport.from_dict(written) == report
    del written["latency_doubt"]  # as an earlier version wrote it
    assert MergeReport.from_dict(written).latency_doubt == ""


def test_the_order_of_composing_is_the_one_that_is_exact() -> None:
    """A shift before a padded depthwise layer is carried on only if a dense layer follows."""
    layers = [nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, padding=1, groups=4), nn.Conv2d(4, 2, 1)]
    torch.manual_seed(0)
    model = nn.Sequential(*layers, nn.ReLU()).eval()
    nn.init.normal_(layers[0].bias)
    network = capture(model, torch.randn(2, 4, 6, 6)).copy()
    first = merge_(network, policy="always")
    assert first.depth_after == 1
    again = merge_(network, policy="always")
    assert (again.depth_before, again.depth_after, again.merged) == (1, 1, [])


def test_a_depthwise_point_and_its_norm_are_folded_at_once() -> None:
    """Together they are a scale and shift, which goes into the layer before."""
    x = torch.randn(2, 4, 9, 9)
    point = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    model = nn.Sequential(nn.Conv2d(4, 4, 3), point, nn.BatchNorm2d(4), nn.ReLU())
    network = capture(with_statistics(model), x).copy()
    report = merge_(network, policy="fold")
    assert report.depth_after == 1
    code, state = network.code, {k: v.clone() for k, v in network.state_dict().items()}
    assert not merge_(network, policy="fold").merged
    assert network.code == code
    assert all(torch.equal(network.state_dict()[k], v) for k, v in state.items())
