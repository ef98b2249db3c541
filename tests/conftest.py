"""Data and weights that lie beside the repository, where they do."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import quick_exports
from shoal.measure.rounds import Rounds, time_rounds
from shoal.runtimes import RUNTIMES, onnx_file

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def few_runtimes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test, nor a process it starts, wait for a C++ compiler, unless it says so.

    A search measures its result in every runtime that can be used here: in tests in two of them.
    """
    if request.node.get_closest_marker("compiles") is None:
        few = {"eager", "onnxruntime"}
        monkeypatch.setattr(
            "shoal.search.ending.installed",
            lambda: [n for n in RUNTIMES.names() if n in few and RUNTIMES[n]().lacking() is None],
        )
        monkeypatch.setenv("CXX", "no-compiler-in-this-test")


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print as into a pipe, whatever the environment says of a terminal."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def measured_shortly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure once and for a moment: nothing follows from real time but in tests of measuring."""
    monkeypatch.setitem(time_rounds.__kwdefaults__, "attempts", 1)
    if request.path.parent.name == "measure":
        return

    def shortly(calls: Any, **timing: Any) -> Rounds:
        few = min(6, timing.get("repeats", 6))
        return time_rounds(calls, **{**timing, "repeats": few, "min_seconds": 0.0})

    monkeypatch.setattr("shoal.measure.latency.time_rounds", shortly)


@pytest.fixture(scope="session", autouse=True)
def exported_quickly() -> Iterator[None]:
    """Spare each export to ONNX but the first what is always the same."""
    translate = onnx_file._translate

    def quickly(*given: Any) -> Any:
        quick_exports.list_once()
        return translate(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "_translate", quickly)
        yield


@pytest.fixture
def every_compilation_counts() -> Iterator[None]:
    """Let PyTorch fail where it would compile again, or run code uncompiled."""
    torch.compiler.reset()
    with torch._dynamo.config.patch(error_on_recompile=True, fail_on_recompile_limit_hit=True):
        yield
    torch.compiler.reset()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder 'shared' beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def resnet20_weights(shared: Path) -> Path:
    """A checkpoint of the CIFAR ResNet-20, trained on the lossless images (92.2 %)."""
    path = shared / "weights" / "resnet20-12fca82f.th"
    if not path.is_file():
        pytest.skip("the weights of ResNet-20 are not in ../shared/weights")
    return path


@pytest.fixture(scope="session")
def cifar_jpeg(shared: Path) -> Path:
    """CIFAR-10 as JPEG files, train/<class>/ and test/<class>/, unpacked once into a cache."""
    return _unpacked(shared, "cifar10-jpeg.tar.xz", "cifar10-jpeg")


@pytest.fixture(scope="session")
def pacs_jpeg(shared: Path) -> Path:
    """Nine tenths of PACS, 128 pixels, unpacked once into a cache."""
    return _unpacked(shared, "pacs-128.tar.xz", "PACS")


def _unpacked(shared: Path, name: str, inside: str) -> Path:
    """Return the folder that an archive of `shared/data` unpacks to, in a cache."""
    archive = shared / "data" / name
    if not archive.is_file():
        pytest.skip(f"{name} is not in ../shared/data")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal-tests"
    folder = home / inside
    if not folder.is_dir():
        # Under another name first, so that an interrupted run leaves nothing half unpacked.
        partial = home / f"unpacking-{os.getpid()}"
        partial.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        (partial / inside).rename(folder)
        partial.rmdir()
    return folder
