"""Networks in int8: the digits end to end, what is calibrated on, and what cannot be done."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import shoal
import small_runs
from shoal.errors import ConfigError, ShoalError
from shoal.network import Network
from shoal.runtimes import Running, Runtime, export, find_runtime
from shoal.runtimes.int8 import Answers, calibration, quantize, quantizers
from shoal.training import evaluate

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def network() -> Network:
    """A trained network for digits, merged."""
    merged = small_runs.captured().copy().eval()
    shoal.merge_(merged, policy="fold")
    return merged


formats = pytest.mark.parametrize(
    ("name", "needs"), [("onnx", "onnxruntime"), ("xml", "nncf")], ids=["onnxruntime", "openvino"]
)


@formats
def test_digits_in_int8_are_within_a_point_of_float(
    network: Network, tmp_path: Path, name: str, needs: str
) -> None:
    pytest.importorskip(needs)
    data = small_runs.digits()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    report = export(network, tmp_path / f"net.{name}", int8=data.train)
    beside = {"net.onnx"} if name == "onnx" else {"net.xml", "net.bin"}
    assert {file.name for file in tmp_path.iterdir()} == beside
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert (report.precision, report.samples, report.checked_batches) == ("int8", 250, (1, 5))
    assert (report.max_rel_error, report.tolerance) == (None, None)
    assert report.agreement is not None
    assert report.agreement >= 97.0
    assert "calibrated on 250 samples, " in str(report)
    assert str(report).endswith("% of the answers are the network's")
    assert "runner" not in report.to_dict()
    assert report.runner is not None
    with pytest.raises(ConfigError, match=re.escape(f"'{report.path}' cannot be run")):
        report.runner(torch.randn(2, 3, 8, 8))
    both = [*data.val, *data.test]
    found = evaluate(Running(report.runner, network), both).top1
    assert abs(found - evaluate(network, both).top1) <= 1.0
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])


class Masked(nn.Module):
    """Forbids two of five answers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).masked_fill(torch.arange(5) > 2, -math.inf)


@formats
def test_answers_may_be_forbidden_by_a_mask(tmp_path: Path, name: str, needs: str) -> None:
    pytest.importorskip(needs)
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    network = shoal.capture(Masked().eval(), x)
    report = export(network, tmp_path / f"net.{name}", int8=[x])
    assert report.runner is not None
    assert torch.equal(report.runner(x).isneginf(), network(x).isneginf())
    assert report.agreement is not None
    assert report.agreement >= 90.0


class Counted:
    """Batches that count how often they are read, and can be had without augmentation."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.read = self.augmented = 0

    def __iter__(self) -> Iterator[Any]:
        self.augmented += 1
        return iter(self.batches)

    def plain(self) -> Counted:
        """Return what is counted apart."""
        inner = Counted(self.batches)
        self.read += 1
        return inner


def test_it_is_calibrated_on_some_samples_without_augmentation(network: Network) -> None:
    loader = Counted([(torch.full((40, 1, 8, 8), float(i)), torch.zeros(40)) for i in range(20)])
    samples = calibration(network, loader)
    assert (loader.read, loader.augmented) == (1, 0)
    assert [len(batch[0]) for batch in samples] == [40] * 7 + [20]  # 300 of 800
    assert [float(batch[0].mean()) for batch in samples] == list(range(8))
    assert len(torch.cat([b[0] for b in calibration(network, small_runs.digits().train, 60)])) == 60


def test_a_loader_that_shuffles_is_calibrated_on_the_same_samples(network: Network) -> None:
    data = TensorDataset(torch.randn(90, 1, 8, 8), torch.zeros(90))
    loader = DataLoader(data, batch_size=10, shuffle=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = calibration(network, loader, 20)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    for a, b in zip(one, calibration(network, loader, 20), strict=True):
        assert torch.equal(a[0], b[0])
    assert not torch.equal(one[0][0], data.tensors[0][:10])  # it did shuffle


def test_a_runtime_that_cannot_quantize_says_so_in_one_line(
    network: Network, tmp_path: Path
) -> None:
    assert "onnxruntime" in quantizers()
    assert not {"eager", "compile"} & set(quantizers())
    samples = calibration(network, small_runs.digits().val)
    with pytest.raises(ShoalError, match="PyTorch cannot quantize: choose a runtime") as found:
        quantize(network, samples, tmp_path / "net.onnx", find_runtime("eager"))
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


class Broken(Runtime):
    """Writes a file that cannot be run at batch 1."""

    name, title, version, int8 = "broken", "Broken", "1", ".brk"

    def make(self, network: nn.Module, inputs: Any, *, check: bool = False) -> Any:
        raise NotImplementedError

    def quantize(self, network: nn.Module, samples: Any, path: Path) -> Any:
        path.write_text("nothing")

        def run(x: Tensor) -> Tensor:
            if len(x) == 1:
                raise ShoalError("one is too few")
            return x

        return run


def test_a_file_that_cannot_be_run_is_not_kept(network: Network, tmp_path: Path) -> None:
    samples = calibration(network, small_runs.digits().val)
    with pytest.raises(ShoalError, match=r"at batch 1 \(one is too few\)"):
        quantize(network, samples, tmp_path / "net.brk", Broken())
    assert not list(tmp_path.iterdir())


class Infinite(Broken):
    def quantize(self, network: nn.Module, samples: Any, path: Path) -> Any:
        path.write_text("nothing")
        return lambda x: network(x) * math.inf


def test_a_file_that_gives_infinities_of_its_own_is_not_kept(
    network: Network, tmp_path: Path
) -> None:
    samples = calibration(network, small_runs.digits().val)
    with pytest.raises(ShoalError, match="values that are not finite"):
        quantize(network, samples, tmp_path / "net.brk", Infinite())
    assert not list(tmp_path.iterdir())


def test_what_makes_no_sense_is_refused(network: Network, tmp_path: Path) -> None:
    data = small_runs.digits().train
    with pytest.raises(ConfigError, match=r"let it end in \.onnx \(onnxruntime\) or \.xml"):
        export(network, tmp_path / "net.pt2", int8=data)
    with pytest.raises(ConfigError, match=r"\.xml is for int8 in OpenVINO: add --int8 \(int8= "):
        export(network, tmp_path / "net.xml")
    with pytest.raises(ConfigError, match="leave them out"):
        export(network, tmp_path / "net.onnx", int8=data, tolerance=1.0)
    with pytest.raises(ShoalError, match="from float32"):
        export(network.copy().double(), tmp_path / "net.onnx", int8=data)
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        export(network, tmp_path / "a.onnx", int8=data)


def test_answers_are_those_of_the_task(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 4)
    net = shoal.capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(),
                                            torch.nn.Linear(8, 1)).eval(), x)  # fmt: skip

    def agreement(answers: Answers | None = None) -> float | None:
        return export(net, tmp_path / "net.onnx", int8=[x], answers=answers).agreement

    signs = agreement(lambda y: (y > 0).long())
    assert signs is not None
    assert 90 <= signs <= 100
    assert agreement() is None  # the place of the largest of one output would always agree
