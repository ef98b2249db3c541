"""Data and weights that lie beside the repository, where they do."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from shoal.measure.rounds import time_rounds
from shoal.runtimes.compile import Compiled

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(autouse=True)
def nothing_is_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test wait for a C++ compiler, which takes seconds for each network, unless it says so.

    Searches measure their result in every runtime that can be used here.
    """
    if request.node.get_closest_marker("compiles") is None:
        monkeypatch.setattr(Compiled, "lacking", lambda self: "not in this test")


@pytest.fixture(autouse=True)
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure once, however busy the machine is: nothing that is tested follows from real time."""
    monkeypatch.setitem(time_rounds.__kwdefaults__, "attempts", 1)


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
    archive = shared / "data" / "cifar10-jpeg.tar.xz"
    if not archive.is_file():
        pytest.skip("cifar10-jpeg.tar.xz is not in ../shared/data")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal-tests"
    folder = home / "cifar10-jpeg"
    if not folder.is_dir():
        # Under another name first, so that an interrupted run leaves nothing half unpacked.
        partial = home / f"unpacking-{os.getpid()}"
        partial.mkdir(parents=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        (partial / "cifar10-jpeg").rename(folder)
        partial.rmdir()
    return folder
