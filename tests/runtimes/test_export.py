from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import processes
import shoal
from captures import resnet20
from shoal import compat
from shoal.errors import ConfigError, FileError, ShoalError
from shoal.measure import compare_outputs
from shoal.network import Network, capture
from shoal.network.modules import Line
from shoal.runtimes import export
from shoal.runtimes.onnx_runner import OnnxRunner
from shoal.runtimes.program import _LineAsNorm

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

FORMATS = ("onnx", "pt2")


class Small(nn.Module):
    """A convolution, a norm, a dropout and a head: one of each thing that exports differently."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        z = self.relu(self.bn(self.conv(image)))
        return self.head(self.drop(z.mean((2, 3))))


class Pair(nn.Module):
    """Two tensors, one of them by keyword, and a number in; a dict with awkward names out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float, *, mask: Tensor) -> dict[str, Any]:
        relu = torch.relu(self.linear(x)) * mask
        return {"relu": relu, "x": relu * scale, "linear.weight": [x, relu]}


def small(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return shoal.capture(Small(), torch.randn(4, 3, 8, 8))


def pair() -> Network:
    torch.manual_seed(0)
    inputs = (torch.randn(2, 4), 3.0)
    return shoal.capture(Pair(), inputs, example_kwargs={"mask": torch.randn(2, 4)})


def saved(path: Path) -> Any:
    return torch.export.load(path).module() if path.suffix == ".pt2" else OnnxRunner(path)


def dimensions(values: Any) -> list[list[Any]]:
    return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]


@pytest.mark.long
@pytest.mark.parametrize("form", FORMATS)
def test_a_network_with_dropped_blocks_exports(tmp_path: Path, form: str) -> None:
    network = resnet20()
    shoal.drop_(network, ["layer1.0", "layer3.2", "layer1.1", "layer2.1", "layer2.2", "layer3.1"])
    export(network, tmp_path / f"net.{form}", torch.randn(2, 3, 16, 16))
    loaded = saved(tmp_path / f"net.{form}")
    assert compare_outputs(network, loaded, [torch.randn(5, 3, 16, 16)]).max_rel_error < 1e-5


@pytest.mark.parametrize("form", FORMATS)
def test_one_file_computes_what_the_network_computes_at_any_batch_size(
    tmp_path: Path, form: str
) -> None:
    network = small()
    report = export(network, tmp_path / f"net.{form}", torch.randn(2, 3, 8, 8))
    assert [p.name for p in tmp_path.iterdir()] == [f"net.{form}"]
    assert report.bytes == (tmp_path / f"net.{form}").stat().st_size
    assert report.max_rel_error is not None
    assert report.max_rel_error <= 1e-5
    assert (report.inputs, report.outputs) == (("image",), ("output",))
    loaded = saved(tmp_path / f"net.{form}")
    for batch in (1, 2, 3, 16):
        assert compare_outputs(network, loaded, [torch.randn(batch, 3, 8, 8)]).max_rel_error < 1e-5


@pytest.mark.parametrize("form", FORMATS)
def test_the_network_is_left_as_it_was(tmp_path: Path, form: str) -> None:
    network = small().to(memory_format=torch.channels_last).train()
    network.get_submodule("bn").eval()
    modes = [m.training for m in network.modules()]
    tensors = {k: (v, v.clone(), v.stride()) for k, v in network.state_dict(keep_vars=True).items()}
    code, plan = network.code, network.plan.to_dict()
    export(network, tmp_path / f"net.{form}")
    assert [m.training for m in network.modules()] == modes
    for name, value in network.state_dict(keep_vars=True).items():
        same, values, stride = tensors[name]
        assert value is same
        assert torch.equal(value, values)
        assert value.stride() == stride
        assert value.grad is None
    assert (network.code, network.plan.to_dict()) == (code, plan)


@pytest.mark.long
def test_a_linearized_network_and_an_option_a_shortcut_export(tmp_path: Path) -> None:
    example = torch.randn(2, 3, 16, 16)
    network = resnet20()
    shoal.drop_(network, ["layer1.0", "layer1.1", "layer1.2"])
    names = [site.name for site in network.sites][::3]
    loader = [(torch.randn(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))]
    shoal.linearize_(network, names, loader=loader)
    for form in FORMATS:
        report = export(network, tmp_path / f"net.{form}", example)
        assert report.max_rel_error is not None
        assert report.max_rel_error <= 1e-5


@pytest.mark.parametrize("form", FORMATS)
def test_several_inputs_and_a_dict_of_outputs_keep_their_names(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"pair.{form}"
    network = pair()
    report = export(network, path)
    assert report.inputs == ("x", "mask")
    x, mask = torch.randn(3, 4), torch.randn(3, 4)
    expected = network.eval()(x, 3.0, mask=mask)
    if form == "pt2":
        found = saved(path)(x, 3.0, mask=mask)
        assert list(found) == ["relu", "x", "linear.weight"]
        assert torch.equal(found["relu"], expected["relu"])
        return
    # "x" is taken by the input, and an ONNX graph has one name for one value.
    assert report.outputs == ("relu", "x_output", "linear.weight_0", "linear.weight_1")
    found = OnnxRunner(path)(x, mask=mask)
    assert isinstance(found, dict)
    torch.testing.assert_close(found["relu"], expected["relu"])
    torch.testing.assert_close(found["x_output"], expected["x"])
    torch.testing.assert_close(found["linear.weight_0"], x)
    assert dimensions(onnx.load(path).graph.input) == [["batch", 4], ["batch", 4]]


class Named(NamedTuple):
    logits: Tensor
    rest: tuple[Tensor, list[Tensor]]


@dataclass
class Held:
    logits: Tensor
    loss: Tensor | None = None


pytree.register_dataclass(Held)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [Named, Held])
def test_outputs_with_named_parts_are_exported(tmp_path: Path, form: str, kind: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            y = self.layer(x)
            return Named(y, (x + 1, [y + 1])) if kind is Named else Held(y)

    network, path = capture(Model(), torch.randn(2, 4)), tmp_path / f"net.{form}"
    assert "logits" in export(network, path).outputs[0]
    x = torch.randn(5, 4)
    if form == "pt2":
        found = saved(path)(x)
        assert list(found) == ["logits", *(["rest"] if kind is Named else [])]
        torch.testing.assert_close(found["logits"], network(x).logits)


@pytest.mark.parametrize("bounds", [(0, 6), (0, 5), (0.0, 6), (0, None)])
def test_clamps_of_whole_numbers_are_exported(tmp_path: Path, bounds: tuple[Any, Any]) -> None:
    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp(self.layer(x) * 20, *bounds)

    network = shoal.capture(Clamped(), torch.randn(2, 4))
    assert len(network.sites) == 1
    assert export(network, tmp_path / "net.onnx").max_rel_error <= 1e-5


def test_the_onnx_graph_is_clean(tmp_path: Path) -> None:
    export(small(), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    operations = {node.op_type for node in model.graph.node}
    assert not operations & {"Dropout", "Bernoulli", "RandomUniformLike"}
    assert dimensions(model.graph.input) == [["batch", 3, 8, 8]]
    assert dimensions(model.graph.output) == [["batch", 4]]
    names = {tensor.name for tensor in model.graph.initializer}
    assert {"conv.weight", "head.weight"} <= names
    assert str(Path(__file__).parents[2]) not in str(model)  # no paths of this machine


def test_stochastic_depth_is_not_in_the_files(tmp_path: Path) -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            branch = self.linear(x)
            if self.training:
                noise = branch.new_empty((x.shape[0], 1)).bernoulli_(0.8)
                branch = branch * noise.div_(0.8)
            return x + branch

    network = shoal.capture(Dropped(), torch.randn(2, 4))
    assert any("StochasticDepth" in type(m).__name__ for m in network.modules())
    export(network, tmp_path / "net.onnx")
    operations = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert sorted(operations) in (["Add", "Gemm"], ["Add", "Add", "MatMul"])


def test_the_operator_version_can_be_chosen(tmp_path: Path) -> None:
    report = export(small(), tmp_path / "net.onnx", opset=18)
    assert report.opset == 18
    assert {d.domain: d.version for d in onnx.load(tmp_path / "net.onnx").opset_import}[""] == 18


def test_double_precision_is_exported_and_checked_more_strictly(tmp_path: Path) -> None:
    report = export(small().double(), tmp_path / "net.pt2")
    assert report.tolerance == 1e-10
    assert report.max_rel_error is not None
    assert report.max_rel_error <= 1e-14


def test_what_onnx_runtime_cannot_run_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match=r"cannot run '.*net\.onnx'.*float32"):
        export(small().double(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_exporting_works_in_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        report = export(small(), tmp_path / "net.pt2", torch.randn(1, 3, 8, 8))
    assert report.max_rel_error == 0.0


def test_a_plain_module_is_captured_from_one_example(tmp_path: Path) -> None:
    model = Small()
    export(model, tmp_path / "net.onnx", torch.randn(1, 3, 8, 8))
    assert model.training
    with pytest.raises(ConfigError, match="example_inputs"):
        export(model, tmp_path / "net.onnx")


def test_the_report_is_plain_values(tmp_path: Path) -> None:
    report = export(small(), tmp_path / "net.pt2", check=False)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert report.max_rel_error is None
    assert report.checked_batches == ()
    assert str(report).endswith("MB, not checked")


def test_a_file_that_computes_something_else_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"
    path.write_text("older")
    run = OnnxRunner.run
    monkeypatch.setattr(OnnxRunner, "run", lambda self, feed: [1.01 * v for v in run(self, feed)])
    with pytest.raises(ShoalError, match=r"something else.*relative error 1\.0e-02, allowed 1e-04"):
        export(small(), path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("net", {}, r"\.onnx or \.pt2"),
        ("net.pth", {}, r"\.onnx or \.pt2"),
        ("folder.onnx", {}, "folder"),
        ("net.pt2", {"opset": 18}, "opset"),
        ("net.onnx", {"tolerance": -1.0}, "tolerance"),
        ("net.onnx", {"example_inputs": torch.randn(2, 5, 8, 8)}, "network is for"),
        ("net.onnx", {"opset": 5}, "opset"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    tmp_path: Path, name: str, options: dict[str, Any], match: str
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ShoalError, match=match) as caught:
        export(small(), tmp_path / name, **options)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.onnx"]


def test_a_network_that_is_too_large_for_one_file_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.runtimes.translated.MAX_BYTES", 100)
    with pytest.raises(ShoalError, match=r"export to \.pt2"):
        export(small(), tmp_path / "net.onnx")


def test_a_place_that_cannot_be_written_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="folder"):
        export(small(), tmp_path / "file" / "net.pt2")


def test_random_numbers_at_inference_are_refused(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    network = shoal.capture(Noisy(), torch.randn(2, 4), check=False)
    with pytest.raises(ShoalError, match="random"):
        export(network, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def export_strictly(folder: Path) -> None:
    warnings.simplefilter("error")
    net = shoal.capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.randn(2, 3, 4, 4))
    net.to(memory_format=torch.channels_last)
    for form in FORMATS:
        export(net, folder / f"a.{form}")


@pytest.mark.long
def test_nothing_is_printed_and_nothing_is_warned_about(tmp_path: Path) -> None:
    # In a process of its own: pytest would catch what the libraries print at their first use.
    done = processes.start(tmp_path, export_strictly, tmp_path)
    assert (done.wait(), done.printed()) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("linearized", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:vgg16_bn",
        "torchvision:swin_t", "timm:vit_tiny_patch16_224", "timm:convnext_atto",
    ],
)  # fmt: skip
def test_known_networks_export_and_agree(tmp_path: Path, name: str, linearized: bool) -> None:
    try:
        compat.import_timm()
    except ShoalError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    example = torch.randn(2, 3, 224, 224)
    network = shoal.capture(shoal.models.load_model(name), example)
    if linearized:
        names = [site.name for site in network.sites][::3]
        shoal.linearize_(network, names, loader=[(example, torch.zeros(2, dtype=torch.long))])
    for form in FORMATS:
        report = export(network, tmp_path / f"net.{form}", example)
        assert report.max_rel_error is not None
        assert report.max_rel_error <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_line_as_a_norm_is_exact_and_has_an_eps(dtype: torch.dtype) -> None:
    """Exporters refuse an eps of 0."""
    torch.manual_seed(0)
    line = Line(torch.randn(5).to(dtype), torch.randn(5).to(dtype), 1)
    norm = _LineAsNorm(line)
    assert norm.EPS > 0
    assert torch.equal(norm.variance + norm.EPS, torch.ones(5, dtype=dtype))
    x = torch.randn(3, 5, 7, 7).to(dtype)
    mean, one = torch.zeros(5, dtype=dtype), torch.ones(5, dtype=dtype)
    # PyTorch 2.11 refuses an eps of 0; one this small adds nothing to 1.
    expected = nn.functional.batch_norm(x, mean, one, norm.weight, norm.bias, eps=1e-30)
    assert torch.equal(norm(x), expected)


def test_no_exported_norm_has_an_eps_of_zero(tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.GELU(), nn.ReLU(), nn.GELU(), nn.Conv2d(4, 2, 3)]
    network = shoal.capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 9, 9))
    shoal.linearize_(network, ["2"], loader=[(torch.randn(8, 3, 9, 9), None)])
    export(network, tmp_path / "net.onnx")
    norms = [
        attribute.f
        for node in onnx.load(tmp_path / "net.onnx").graph.node
        for attribute in node.attribute
        if attribute.name == "epsilon"
    ]
    assert norms
    assert all(eps > 0 for eps in norms)
