from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import nn

from shoal.errors import CheckpointError, ConfigError, NameNotFoundError, ShoalError
from shoal.models import build_model, complete_spec, load_model, models, parse_spec

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="timm or torchvision is not installed",
)

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=3, hidden=4):
        super().__init__()
        self.fc = nn.Linear(hidden, num_classes)

def fixed(hidden=4):
    return Net(hidden=hidden)

def needy(path):
    return Net()

def nothing():
    return {"state_dict": {}}

def broken():
    x = torch.zeros(2, 3)
    return x @ x

made = Net()
"""


@pytest.fixture
def nets(tmp_path: Path):
    """A file of a user's factories."""
    path, modules = list(sys.path), set(sys.modules)
    file = tmp_path / "shoal_test_user_nets.py"
    file.write_text(FACTORIES)
    yield file
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("shoal_test"):
            del sys.modules[name]


def error_of(spec: str, **options: int) -> str:
    with pytest.raises(ShoalError) as caught:
        build_model(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "kind", "name", "kwargs"),
    [
        ("torchvision:resnet18", "torchvision", "resnet18", {}),
        ("timm:vit_tiny?drop_rate=0.1", "timm", "vit_tiny", {"drop_rate": 0.1}),
        ("timm:hf-hub:user/model", "timm", "hf-hub:user/model", {}),
        ("shoal:cifar_resnet20?num_classes=5", "shoal", "cifar_resnet20", {"num_classes": 5}),
        ("nets/mine.py:Net", "file", "nets/mine.py:Net", {}),
        ("/a:b/mine.py:Net", "file", "/a:b/mine.py:Net", {}),
        ("package.module:build?a=true", "module", "package.module:build", {"a": True}),
    ],
)
def test_specs_are_taken_apart_and_written_again(text: str, kind: str, name: str, kwargs: dict):
    spec = parse_spec(text)
    assert (spec.kind, spec.name, spec.kwargs) == (kind, name, kwargs)
    assert spec.text == text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("torchvison:resnet18", "did you mean 'torchvision'?"),
        ("Timm:resnet18", "did you mean 'timm'"),
        ("nets/resnet18", "does not say where the model comes from"),
        ("cifar_resnt20", "did you mean 'shoal:cifar_resnet20'"),
        ("shoal:", "names no model"),
        ("nets/mine.py", "write nets/mine.py:NAME"),
        ("weights.pth", "pass this file as the checkpoint"),
        ("shoal:cifar_resnet20?classes", "is not key=value"),
        ("shoal:cifar_resnt20", "did you mean 'cifar_resnet20'"),
        ("shoal:cifar_resnet20?clases=3", "does not take 'clases'"),
        ("shoal:cifar_resnet20?num_classes=0", "num_classes is 0"),
        ("shoal_no_such_package.nets:build", "there is no module 'shoal_no_such_package'"),
    ],
)
def test_wrong_specs_say_what_to_do(text: str, part: str):
    assert part in error_of(text)


def test_every_model_of_shoal_is_registered_and_takes_the_classes_of_the_data():
    assert {"cifar_resnet20", "cifar_resnet110", "digits_resnet"} <= set(models)
    model = build_model("shoal:cifar_resnet20", num_classes=7, in_channels=1)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    # What the spec says itself counts more than the data.
    assert build_model("shoal:digits_resnet?num_classes=4", num_classes=9).fc.out_features == 4


def test_user_factories_get_the_classes_only_if_they_name_them(nets: Path):
    assert build_model(f"{nets}:Net", num_classes=9).fc.out_features == 9
    assert build_model(f"{nets}:fixed?hidden=6", num_classes=9).fc.weight.shape == (3, 6)
    assert complete_spec(f"{nets}:Net", num_classes=9).text == f"{nets}:Net?num_classes=9"
    assert complete_spec(f"{nets}:fixed", num_classes=9).text == f"{nets}:fixed"


def test_user_factories_that_fail_are_one_line(nets: Path):
    assert "no_such.py' does not exist" in error_of(f"{nets.parent}/no_such.py:build")
    assert "did you mean 'fixed'?" in error_of(f"{nets}:fixd")
    assert "needs the argument 'path'" in error_of(f"{nets}:needy")
    assert "must return a torch.nn.Module" in error_of(f"{nets}:nothing")
    assert "is a model, not a factory" in error_of(f"{nets}:made")
    message = error_of(f"{nets}:broken")
    assert "RuntimeError" in message
    line = FACTORIES[: FACTORIES.index("x @ x")].count("\n") + 1
    assert message.endswith(f"({nets}:{line})")


def test_weights_are_loaded_into_the_model_that_was_built(tmp_path: Path):
    saved = build_model("shoal:digits_resnet")
    path = tmp_path / "digits.pt"
    torch.save(saved.state_dict(), path)
    loaded = load_model("shoal:digits_resnet", path)
    assert all(
        torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True)
    )
    with pytest.raises(CheckpointError, match="build the model with num_classes=10"):
        load_model("shoal:digits_resnet", path, num_classes=12)


@needs_timm
def test_torchvision_models():
    assert build_model("torchvision:resnet18", num_classes=7).fc.out_features == 7
    assert build_model("torchvision:resnet18").fc.out_features == 1000
    assert "did you mean" in error_of("torchvision:resnet19")
    assert "does not take 'drop'" in error_of("torchvision:resnet18?drop=1")
    assert "not an image classifier" in error_of("torchvision:fcn_resnet50")
    assert "unknown set of weights of torchvision:resnet18 'IMAGENET1K_V9'" in error_of(
        "torchvision:resnet18?weights=IMAGENET1K_V9"
    )


@needs_timm
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2", "inception_v3"])
def test_pretrained_torchvision_models_get_a_fresh_head(name: str, monkeypatch):
    from shoal.models import import_torchvision

    models_of = import_torchvision().models
    options = {"init_weights": False} if name == "inception_v3" else {}
    plain = models_of.get_model(name, **options).state_dict()
    asked = []
    monkeypatch.setattr(
        models_of.get_model_weights(name),
        "get_state_dict",
        lambda *args, **kwargs: asked.append(args) or plain,  # instead of a download
    )
    model = build_model(f"torchvision:{name}?pretrained=true", num_classes=5)
    assert len(asked) == 1
    heads = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert all(head.out_features == 5 for head in heads)
    with torch.no_grad():
        side = 299 if name == "inception_v3" else 64
        assert model.eval()(torch.zeros(1, 3, side, side)).shape == (1, 5)


@needs_timm
def test_timm_models():
    model = build_model("timm:resnet18?drop_rate=0.25", num_classes=7, in_channels=1)
    assert model.fc.out_features == 7
    assert model.conv1.in_channels == 1
    assert model.drop_rate == 0.25
    assert "did you mean" in error_of("timm:resnet19")
    assert "does not take 'drop'" in error_of("timm:resnet18?drop=1")


def test_an_unknown_name_is_a_name_error():
    with pytest.raises(NameNotFoundError):
        build_model("shoal:nothing_like_it")
    with pytest.raises(NameNotFoundError):
        build_model("nothing_like_it")


@needs_timm
def test_a_plain_name_is_torchvisions_then_timms_then_shoals():
    both = parse_spec("resnet18?num_classes=3")
    assert both == parse_spec("torchvision:resnet18?num_classes=3")
    assert both.text == "torchvision:resnet18?num_classes=3"
    assert both.note.endswith("write timm:resnet18")
    for text, library in (
        ("resnet26d", "timm"),
        ("resnet26d.bt_in1k", "timm"),
        ("cifar_resnet20", "shoal"),
        ("alexnet", "torchvision"),
    ):
        spec = parse_spec(text)
        assert (spec.kind, spec.name, spec.note) == (library, text, "")
    assert build_model("cifar_resnet20", num_classes=7).linear.out_features == 7
    near = error_of("resnet26dd")
    assert near.startswith("'resnet26dd' is no folder here, and no model of torchvision nor timm")
    assert "'timm:resnet26d'" in near
    assert "path/file.py:factory" in error_of("zzzzzz")


def test_a_plain_name_needs_no_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert parse_spec("cifar_resnet20").target == "shoal:cifar_resnet20"
    assert "install torchvision or timm" in error_of("wide_net_of_mine")


@needs_timm
def test_published_weights_are_asked_for_where_there_are_any(monkeypatch: pytest.MonkeyPatch):
    assert complete_spec("resnet26d", pretrained=True).text == "timm:resnet26d?pretrained=true"
    given = "torchvision:resnet18?weights=IMAGENET1K_V1"
    assert complete_spec(given, pretrained=True).text == given
    assert not complete_spec("resnet18").downloads
    with pytest.raises(ConfigError, match="shoal:cifar_resnet20 is none: give a file of weights"):
        complete_spec("cifar_resnet20", pretrained=True)

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("no route to host")

    from shoal.models import import_torchvision

    weights = import_torchvision().models.get_model_weights("resnet18")
    monkeypatch.setattr(weights, "get_state_dict", offline)
    message = error_of("torchvision:resnet18?pretrained=true")
    assert "cannot be downloaded (<urlopen error no route to host>): check the network" in message
