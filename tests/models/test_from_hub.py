"""Classifiers of transformers by `hf:ORG/NAME`, from a stand-in of the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import shoal
from shoal.cli import main
from shoal.compat import import_transformers
from shoal.errors import ConfigError, FileError
from shoal.models import build_model, classes_of, normalisation_of, parse_spec
from shoal.models.from_hub import usual_inputs
from stand_in_hub import Hub

huggingface_hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("transformers")

HALF = [0.5, 0.5, 0.5]
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small classifiers of images and of text, as transformers saves them, with random weights."""
    library = import_transformers()
    torch.manual_seed(0)
    vit = library.ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=3)
    bert = library.BertConfig(**SMALL, vocab_size=50, max_position_embeddings=34, num_labels=2)
    gpt = library.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=64, num_labels=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("saved")
    library.ViTForImageClassification(vit).save_pretrained(folder / "vit")
    described = {"image_mean": HALF, "image_std": HALF, "size": {"height": 16, "width": 16}}
    (folder / "vit" / "preprocessor_config.json").write_text(json.dumps(described))
    library.BertForSequenceClassification(bert).save_pretrained(folder / "bert")
    library.BertForMaskedLM(bert).save_pretrained(folder / "no-head")
    library.GPT2ForSequenceClassification(gpt).save_pretrained(folder / "gpt")
    return folder


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    stand_in.folder.mkdir()
    for folder in saved.iterdir():
        stand_in.create_repo(f"me/{folder.name}", repo_type="model", private=False, exist_ok=True)
        stand_in.upload_folder(
            repo_id=f"me/{folder.name}", repo_type="model", folder_path=str(folder),
            commit_message="",
        )  # fmt: skip
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


def put(hub: Hub, name: str, config: dict[str, Any]) -> None:
    folder = hub.snapshots(name) / "0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.long
@pytest.mark.parametrize("name", ["vit", "bert", "gpt"])
def test_a_classifier_computes_what_transformers_computes(hub: Hub, saved: Path, name: str) -> None:
    model = build_model(f"hf:me/{name}")
    library = import_transformers()
    auto = "AutoModelForImageClassification" if name == "vit" else (
        "AutoModelForSequenceClassification"
    )  # fmt: skip
    right = getattr(library, auto).from_pretrained(saved / name).eval()
    inputs = usual_inputs(f"hf:me/{name}", model)
    net = shoal.capture(model, inputs)
    with torch.no_grad():
        if isinstance(inputs, dict):
            ours, theirs = net(**inputs)["logits"], right(**inputs).logits
        else:
            ours, theirs = net(inputs)["logits"], right(inputs).logits
    assert torch.equal(ours, theirs)


def test_what_a_usual_input_is(hub: Hub) -> None:
    vit = build_model("hf:me/vit")
    assert usual_inputs("hf:me/vit", vit).shape == (2, 3, 16, 16)
    assert usual_inputs("hf:me/vit", vit, size=32).shape == (2, 3, 32, 32)
    text = usual_inputs("hf:me/bert", build_model("hf:me/bert"))
    assert text["input_ids"].shape == text["attention_mask"].shape == (2, 32)  # 34 positions
    assert usual_inputs("hf:me/bert", build_model("hf:me/bert"), (7,))["input_ids"].shape == (2, 7)


def test_another_number_of_classes_gives_a_new_last_layer(hub: Hub) -> None:
    same, other = build_model("hf:me/vit"), build_model("hf:me/vit", num_classes=7)
    assert other.classifier.out_features == 7
    kept = {k: v for k, v in same.state_dict().items() if not k.startswith("classifier")}
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in kept.items())


def test_what_the_weights_are_for(hub: Hub) -> None:
    assert classes_of(parse_spec("hf:me/vit")) == 3
    assert classes_of(parse_spec("hf:me/no-head")) is None
    half = (0.5, 0.5, 0.5)
    assert normalisation_of(parse_spec("hf:me/vit")) == {"mean": half, "std": half}
    assert normalisation_of(parse_spec("hf:me/bert")) == {}
    assert normalisation_of(parse_spec("resnet18")) == {}  # its weights are not asked for
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert normalisation_of(parse_spec("torchvision:resnet18?weights=DEFAULT")) == imagenet
    timm = normalisation_of(parse_spec("timm:vit_tiny_patch16_224?pretrained=true"))
    assert timm == {"mean": half, "std": half}


def test_a_model_without_a_head_is_given_one(hub: Hub) -> None:
    model = build_model("hf:me/no-head", num_classes=5)
    assert model.config.num_labels == 5


def test_what_cannot_be_built_is_said_in_one_line(hub: Hub) -> None:
    put(hub, "me/own-code", {"model_type": "mine", "auto_map": {"AutoModel": "mine.Mine"}})
    put(hub, "me/voice", {"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"]})
    put(hub, "me/empty", {"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    for name, said in {
        "me/own-code": "no code from the hub is run",
        "me/voice": "no image or text classifier but Wav2Vec2ForCTC",
        "me/empty": "holds no weights for PyTorch",
    }.items():
        with pytest.raises(ConfigError, match=said):
            build_model(f"hf:{name}")
    with pytest.raises(FileError, match="cannot be fetched"):
        build_model("hf:me/nothing")


def test_only_files_of_data_are_fetched(hub: Hub) -> None:
    folder = hub.snapshots("me/bert") / f"{0:040x}"
    (folder / "modeling_mine.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    build_model("hf:me/bert")
    assert {Path(name).suffix for name in hub.fetched} == {".json", ".safetensors"}


@pytest.mark.long
def test_the_command_line_takes_one(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 4)):
        for label in ("a", "b", "c"):
            place = tmp_path / "photos" / part / label
            place.mkdir(parents=True)
            for k in range(count):
                pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{k}.png")
    data = f"folder:{tmp_path / 'photos'}"
    common = ["hf:me/vit", "--data", data, "--image-size", "16"]
    assert main(["inspect", *common]) == 0
    told = capsys.readouterr()
    assert "gelu" in told.out
    assert "--method shoal" in told.out
    out = tmp_path / "run"
    how = ["--method", "easier", "--remove", "1", "--epochs", "0", "--max-drop", "100"]
    assert main(["compress", *common, *how, "--out", str(out), "--batch-size", "8"]) == 0
    meta = shoal.load(out).meta
    assert meta["mean"] == meta["std"] == HALF
    assert meta["classes"] == ["a", "b", "c"]
