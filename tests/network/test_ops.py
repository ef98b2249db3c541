"""The operator table holds what the tables before it held, each value written down here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from network_checks import Call, evaluate, kinds, reloaded, same
from torch import nn

import shoal
from shoal.merge.linear_ops import linear_map
from shoal.network import capture, modules, raising  # noqa: F401 (raising fills the table)
from shoal.network.calls import rectifier
from shoal.network.ops import ATEN, Op, op_of
from shoal.network.reach import is_passed

# By property: the operations, all overloads of a name.
_PACKETS: dict[tuple[str, Any], str] = {
    ("channels", "second"): """
_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d
avg_pool2d avg_pool3d batch_norm conv1d conv2d conv3d conv_depthwise3d conv_transpose1d
conv_transpose2d conv_transpose3d convolution group_norm instance_norm max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
""",
    ("channels", "last"): """
addmm embedding embedding_bag layer_norm linear matmul
""",
    ("channels", "reshaped"): """
_unsafe_view amax flatten mean reshape reshape_as squeeze squeeze_copy sum sum_to_size unflatten
unsqueeze unsqueeze_copy view view_as view_as_complex view_as_real view_copy
""",
    ("channels", "kept"): """
add addbmm addcdiv addcmul addmv addr cat chunk clamp clamp_max clamp_min clone contiguous div
divide dropout empty_like full_like gelu hardsigmoid hardswish mul multinomial multiply neg
negative ones_like pad pow rand_like randint_like randn_like relu relu6 roll sigmoid silu slice
slice_copy slice_scatter softmax split split_copy split_with_sizes split_with_sizes_copy sub
subtract tanh to topk zeros_like
""",
    ("shape_only", True): """
empty_like full_like new_empty new_empty_strided new_full new_ones new_zeros ones_like rand_like
randint_like randn_like sym_size zeros_like
""",
    ("in_place", True): """
abs add alpha_dropout celu clamp clamp_max clamp_min detach div dropout elu exp feature_dropout
floor gelu hardsigmoid hardswish hardtanh index_put leaky_relu masked_fill mish mul neg pow relu
relu6 rrelu rsqrt selu sigmoid silu sqrt square sub tanh threshold
""",
    ("converts", True): """
_to_copy to
""",
}
# By property: single overloads.
_OVERLOADS: dict[tuple[str, Any], str] = {
    ("channels", "moved"): """
permute.default transpose.int
""",
    ("addition", 1.0): """
add.Tensor add_.Tensor
""",
    ("addition", -1.0): """
sub.Tensor sub_.Tensor
""",
    ("linear", "flatten"): """
flatten.using_ints reshape.default view.default
""",
    ("linear", "scale"): """
div.Scalar div.Tensor mul.Scalar mul.Tensor
""",
    ("linear", "pad"): """
constant_pad_nd.default pad.default
""",
    ("pool", "mean"): """
adaptive_avg_pool1d.default adaptive_avg_pool2d.default mean.dim
""",
    ("pool", "window"): """
avg_pool2d.default max_pool2d.default
""",
    ("pointwise", True): """
add.Scalar add.Tensor clamp.default clone.default contiguous.default div.Scalar div.Tensor
hardsigmoid.default mul.Scalar mul.Tensor sigmoid.default sub.Tensor tanh.default
""",
    ("mode_argument", 2): """
dropout.default feature_dropout.default alpha_dropout.default feature_alpha_dropout.default
""",
    ("mode_argument", 3): """
rrelu.default
""",
    ("mode_argument", 4): """
scaled_dot_product_attention.default
""",
    ("mode_argument", 5): """
batch_norm.default instance_norm.default
""",
}
_HOLDING: dict[str, str] = {
    "rectifier": """
celu.default clamp.default clamp_min.Tensor clamp_min.default clip.default elu.default gelu.default
hardswish.default hardtanh.default leaky_relu.default max.other maximum.default mish.default
prelu.default relu.default relu6.default rrelu.default selu.default silu.default
softplus.default threshold.default
""",
    "layer": """
batch_norm.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default
conv3d.padding conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input
embedding.default group_norm.default instance_norm.default layer_norm.default linear.default
""",
    "dropout": """
alpha_dropout.default dropout.default feature_alpha_dropout.default feature_dropout.default
""",
}
# Before, blocks and depth disagreed on what has weights: the table has what either had.
_WEIGHTED = """
_convolution _trilinear addbmm addmm addmv baddbmm bilinear bmm chain_matmul conv1d conv2d
conv3d conv_depthwise3d conv_transpose1d conv_transpose2d conv_transpose3d convolution dot
einsum linear matmul mm mv tensordot vdot
"""
_NOTHING = """
AlphaDropout Dropout Dropout1d Dropout2d Dropout3d FeatureAlphaDropout Identity StochasticDepth
"""
_PASSED = """
AlphaDropout Dropout Dropout1d Dropout2d FeatureAlphaDropout Identity Line StochasticDepth
"""
_SECOND_MODULES = """
Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d GroupNorm PReLU _BatchNorm
_InstanceNorm
"""
_LAST_MODULES = """
Embedding LayerNorm Linear
"""
_WEIGHTED_MODULES = """
Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Linear
"""


def _overloads(name: str) -> list[str]:
    packet = getattr(torch.ops.aten, name)
    return [f"{name}.{o}" for o in packet.overloads() if not o.endswith("out")]


_ALL = sorted(overload for name in ATEN for overload in _overloads(name))


def holding(property: str, value: Any = ...) -> list[str]:
    """Return the overloads whose property has that value; any but the default for none."""
    default = getattr(Op(), property)
    found = ((name, getattr(op_of(f"aten.{name}"), property)) for name in _ALL)
    return [n for n, v in found if (v == value if value is not ... else v != default)]


@pytest.mark.parametrize("key", list(_PACKETS))
def test_properties_of_all_overloads(key: tuple[str, Any]) -> None:
    expected = [overload for name in _PACKETS[key].split() for overload in _overloads(name)]
    assert holding(*key) == sorted(expected)


@pytest.mark.parametrize("key", list(_OVERLOADS))
def test_properties_of_single_overloads(key: tuple[str, Any]) -> None:
    expected = [name for name in _OVERLOADS[key].split() if "_." not in name]
    assert holding(*key) == sorted(expected)
    for name in _OVERLOADS[key].split():
        assert getattr(op_of(f"aten.{name}"), key[0]) == key[1]


@pytest.mark.parametrize("property", list(_HOLDING))
def test_what_is_recognised(property: str) -> None:
    assert holding(property) == sorted(_HOLDING[property].split())


def test_what_has_weights() -> None:
    expected = [overload for name in _WEIGHTED.split() for overload in _overloads(name)]
    assert holding("weighted", True) == sorted(expected)


def _types(names: str) -> list[Any]:
    homes = (nn, modules, nn.modules.batchnorm, nn.modules.instancenorm)
    return [next(getattr(h, n) for h in homes if hasattr(h, n)) for n in names.split()]


def test_properties_of_modules() -> None:
    bases = {nn.modules.batchnorm._BatchNorm: nn.BatchNorm2d,
             nn.modules.instancenorm._InstanceNorm: nn.InstanceNorm2d}  # fmt: skip
    for names, property, value in (
        (_NOTHING, "linear", "nothing"), (_PASSED, "pointwise", True),
        (_SECOND_MODULES, "channels", "second"), (_LAST_MODULES, "channels", "last"),
        (_WEIGHTED_MODULES, "weighted", True),
    ):  # fmt: skip
        for kind in _types(names):
            assert getattr(op_of(bases.get(kind, kind)), property) == value, kind
    assert op_of(nn.ReLU).absorbed == (nn.ReLU, nn.ReLU6)
    assert op_of(nn.ReLU6).absorbed == (nn.ReLU6,)


def test_dropout_of_volumes_is_dropout_everywhere() -> None:
    """One of five lists of dropouts had forgotten it."""
    op = op_of(nn.Dropout3d)
    assert (op.pointwise, op.linear, op.arguments) == (True, "nothing", ("p",))
    model = nn.Sequential(nn.Conv3d(2, 3, 1), nn.Dropout3d(0.3), nn.ReLU())
    net = capture(model, torch.randn(2, 2, 4, 4, 4)).copy()
    node = net.node_of("1")
    assert is_passed(node, net.get_submodule(""), ())
    found = linear_map(node, net)
    assert found is not None
    assert found.layout is None
    assert isinstance(reloaded(net).get_submodule("1"), nn.Dropout3d)


class Hinge(nn.Module):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.where(z > 0, z, self.slope * z)


def test_one_registration_makes_an_operation_a_rectifier_everywhere() -> None:
    library = torch.library.Library("shoal_table", "DEF")
    library.define("hinge(Tensor z, float slope) -> Tensor")
    library.impl("hinge", lambda z, slope: Hinge(slope)(z), "CompositeExplicitAutograd")
    library.impl("hinge", lambda z, slope: torch.empty_like(z), "Meta")
    library.define("thrice(Tensor x) -> Tensor")
    library.impl("thrice", lambda x: 3 * x, "CompositeExplicitAutograd")
    library.impl("thrice", lambda x: torch.empty_like(x), "Meta")
    hinge, thrice = torch.ops.shoal_table.hinge.default, torch.ops.shoal_table.thrice.default

    def triple(arguments: dict[str, Any]) -> nn.Module:
        channels = arguments["x"].meta["shape"][1]
        return modules.Line(torch.full((channels,), 3.0), torch.zeros(channels), 1)

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return hinge(thrice(self.b(hinge(self.a(x), 0.2) + x)), 0.2)

    shoal.register_op(Hinge, arguments=("slope",))
    shoal.register_op(hinge, rectifier=rectifier("hinge", lambda a: Hinge(a["slope"])))
    shoal.register_op(thrice, linear=triple)
    model = Call(forward, a=nn.Conv2d(3, 3, 3, padding=1), b=nn.Conv2d(3, 3, 1))
    x = torch.randn(4, 3, 8, 8)
    net = capture(model, x).copy()
    assert kinds(net) == ["hinge", "hinge"]
    assert [block.sites for block in net.blocks] == [(net.sites[0].name,)]
    assert net.opaque == ()
    assert same(evaluate(reloaded(net), x), evaluate(net, x))
    shoal.merge_(net, policy="always")
    assert not any(node.target is thrice for node in net.graph.nodes)
    library._destroy()
