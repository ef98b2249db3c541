"""Networks that classify no images, compressed from end to end, each by its own quality."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shoal
from shoal import compat
from shoal.cli import main
from shoal.errors import ConfigError, DataError, TrainingError
from shoal.report import outcome_lines, outcome_tables, read_run, steps_table
from shoal.search.records import Result
from shoal.tasks import find_task, with_own
from small_runs import FakeGauge, untimed_commands

RECIPE = {"lr": 0.02, "precision": "fp32"}


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


def compressed(
    model: nn.Module, batches: Sequence[Any], method: str = "easier", **options: Any
) -> Result:
    """Compress on a few batches, with a clock that stands still."""
    task = with_own(
        find_task(options.get("task", "classify")), options.get("loss"), options.get("evaluate")
    )
    given = {"recipe": RECIPE, "max_drop": 1e9, "epochs": 1, **options}
    return shoal.compress(
        model, batches, batches, method, gauge=FakeGauge(batches, task=task), **given
    )


def shown(result: Result) -> str:
    """Return all texts of a result's tables."""
    tables = [*outcome_tables(result), steps_table(result)]
    cells = [cell for table in tables for row in table.texts() for cell in row]
    heads = [column.name for table in tables for column in table.columns]
    return " | ".join([*heads, *cells])


# ---------------------------------------------------------------------- text


class Text(nn.Module):
    """A small encoder with the interface of the usual libraries: keywords in, a mapping out."""

    def __init__(self, tokens: int = 30, width: int = 16, classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.attention = nn.Linear(width, width)
        self.up, self.act, self.down = nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)
        self.head = nn.Linear(width, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, return_dict: bool = True
    ) -> dict[str, Any]:
        x = self.embed(input_ids)
        x = x + self.down(self.act(self.up(self.attention(x))))
        mask = attention_mask[..., None].to(x.dtype)
        pooled = (x * mask).sum(1) / mask.sum(1)
        return {"hidden_states": (x,), "logits": self.head(pooled)}


def sentences(samples: int = 24, tokens: int = 30) -> list[dict[str, Tensor]]:
    labels = torch.arange(samples) % 3
    ids = 10 * labels[:, None] + torch.randint(0, tokens // 3, (samples, 7))
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    return [{"input_ids": ids, "attention_mask": mask, "labels": labels}] * 2


@pytest.mark.long
def test_a_text_classifier_of_dict_batches() -> None:
    batches = sentences()
    result = compressed(Text(), batches, epochs=6, lr=0.2)
    assert (result.removed, result.total) == (1, 1)
    assert result.final.top1_val > 90
    assert "top-1 validation" in shown(result)
    inputs = {name: batches[0][name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(
        result.merged(**inputs)["logits"], result.model(**inputs)["logits"], atol=1e-4, rtol=1e-4
    )


@pytest.mark.long
def test_a_text_classifier_of_transformers() -> None:
    compat.import_torchvision()  # which transformers imports itself
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=30, num_hidden_layers=2, max_position_embeddings=8, num_labels=3, **sizes
    )
    model = transformers.BertForSequenceClassification(config).eval()
    result = compressed(model, sentences(), epochs=1)
    assert result.removed == result.total == 2
    assert result.dense.quality_name == "top-1"


# ---------------------------------------------------------------------- segmentation


class Segmenter(nn.Module):
    """A small fully convolutional network that returns what torchvision's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU()
        self.body, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.classifier, self.aside = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.body(self.relu(self.stem(x))))
        both = {"out": self.classifier(x), "aux": self.aside(x)}
        return {
            name: F.interpolate(y, scale_factor=2.0, mode="bilinear") for name, y in both.items()
        }


def scenes(size: int = 16, channels: int = 1) -> list[tuple[Tensor, Tensor]]:
    images = torch.randn(6, channels, size, size)
    images[:, :, : size // 2] += 2.0
    masks = torch.zeros(6, size, size, dtype=torch.int64)
    masks[:, : size // 2] = 1
    masks[:, 0] = 255  # not labelled
    return [(images, masks)] * 3


def test_a_segmentation_network_is_judged_by_its_miou(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = compressed(Segmenter(), scenes(), task="segment", epochs=8, out=out)
    assert result.removed == 2
    assert result.final.top1_val > 60
    text = shown(result)
    assert "mIoU validation" in text
    assert "validation mIoU" in text
    assert "top-1" not in text
    written = result.to_dict()
    assert written["final"]["miou_val"] == written["final"]["top1_val"]
    assert written["steps"][0]["quality_name"] == "mIoU"
    again = read_run(out)
    assert (again.dense, again.final) == (result.dense, result.final)
    assert shoal.load(out).meta["quality"] == "mIoU"
    with pytest.raises(shoal.ShoalError, match="output_index was null and is 0"):
        compressed(Segmenter(), scenes(), task="segment?output_index=0", epochs=8, out=out)


@pytest.mark.slow
def test_a_segmentation_network_of_torchvision() -> None:
    models = compat.import_torchvision().models.segmentation
    model = models.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    ).eval()
    result = compressed(model, scenes(64, 3)[:1], task="segment", epochs=0, remove=2)
    assert result.removed == 2
    assert result.dense.quality_name == "mIoU"


# ---------------------------------------------------------------------- detection


class Detector(nn.Module):
    """One box for each cell of a 4 × 4 grid: a score, and the offset of its centre."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.score, self.offset = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.backbone(x)
        return {"scores": self.score(x).flatten(1), "offsets": self.offset(x).flatten(2)}


def objects() -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Images with a bright cell or two, and the cells of each as its own entry."""
    images, targets = 0.1 * torch.randn(8, 1, 8, 8), []
    for i in range(8):
        cells = torch.randperm(16)[: 1 + i % 2]
        for cell in cells.tolist():
            row, column = divmod(cell, 4)
            images[i, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 3.0
        targets.append({"cells": cells, "offsets": torch.zeros(len(cells), 2)})
    return [(images, targets)] * 4


def detection_loss(returned: dict[str, Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    wanted = torch.zeros_like(returned["scores"])
    losses = []
    for i, target in enumerate(targets):
        wanted[i, target["cells"]] = 1.0
        offsets = returned["offsets"][i, :, target["cells"]].T
        losses.append(F.l1_loss(offsets, target["offsets"]))
    scores = F.binary_cross_entropy_with_logits(returned["scores"], wanted, reduction="none")
    return scores.mean(1) + torch.stack(losses)


def cells_found(network: nn.Module, data: Iterable[Any]) -> float:
    """Return the percentage of objects whose cell is among the highest scores of its image."""
    found = total = 0
    for images, targets in data:
        for scores, target in zip(network(images)["scores"], targets, strict=True):
            best = scores.topk(len(target["cells"])).indices.tolist()
            found += len({*best} & {*target["cells"].tolist()})
            total += len(target["cells"])
    return 100.0 * found / total


@pytest.mark.parametrize("method", ["easier", "shoal"])
def test_a_detector_with_a_loss_and_a_quality_of_its_own(method: str) -> None:
    options = {"moves": ("linearize",), "step_saving": 1.0} if method == "shoal" else {}
    result = compressed(
        Detector(), objects(), method, epochs=4, dense_epochs=10, per_step=1,
        loss=detection_loss, evaluate=cells_found, **options,
    )  # fmt: skip
    assert result.dense.top1_val > 80
    assert result.dense.quality_name == "cells found"
    assert result.removed >= 1
    assert "cells found validation" in shown(result)
    assert result.to_dict()["dense"]["cells_found_val"] == result.dense.top1_val


# ---------------------------------------------------------------------- regression and the rest


def head(outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs)
    )


X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
TARGETS = {
    "regress": X[:, :1] * 3 + X[:, 1:2].relu(),
    "binary": (X[:, 0] > 0).float(),
    "multilabel": (X[:, :3] > 0).float(),
}
NAMES = {"regress": "R²", "binary": "accuracy", "multilabel": "mAP"}
WRONG = {"regress": "regress", "binary": "binary", "multilabel": "multilabel"}


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("recipe", [RECIPE, {**RECIPE, "distill": 0.5}])
def test_each_task_is_compressed_by_its_own_quality(task: str, recipe: dict[str, Any]) -> None:
    outputs = 3 if task == "multilabel" else 1
    given = {**recipe, "lr": 0.02 if task == "regress" else 0.2}
    batches = [(X, TARGETS[task])] * 4
    result = compressed(head(outputs), batches, task=task, recipe=given, epochs=4, dense_epochs=30)
    assert result.removed >= 1
    assert result.dense.top1_val > 70
    assert result.final.top1_val > 20
    assert f"{NAMES[task]} validation" in shown(result)


@pytest.mark.parametrize("task", TARGETS)
def test_targets_of_another_task_end_in_one_line_that_names_it(task: str) -> None:
    outputs = 3 if task == "multilabel" else 1
    with pytest.raises(DataError, match=f"task='{WRONG[task]}'") as caught:
        compressed(head(outputs), [(X, TARGETS[task])] * 2)
    assert "in the training data" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", [*TARGETS, "segment"])
@pytest.mark.parametrize("criterion", ["line_loss", "entropy", "consensus?criteria=cka+lesion"])
def test_criteria_follow_the_task(task: str, criterion: str) -> None:
    if task == "segment":
        model, batches = Segmenter(), scenes()
    else:
        model, batches = head(3 if task == "multilabel" else 1), [(X, TARGETS[task])] * 2
    if criterion.startswith("consensus"):
        criterion += "&place=site"
    net = shoal.capture(model.eval(), batches[0][0])
    scores = shoal.score(net, batches, criterion, task=task)
    assert len(scores) == 2
    if criterion == "line_loss":
        assert scores.unit == find_task(task).loss_unit


def test_what_a_criterion_cannot_judge_by_is_refused() -> None:
    net, batches = shoal.capture(head(1).eval(), X), [(X, TARGETS["regress"])]
    with pytest.raises(ConfigError, match="kl compares predicted probabilities"):
        shoal.score(net, batches, "kl?place=site", task="regress")
    for criterion in ("lesion?place=site&metric=accuracy", "line_loss?metric=accuracy"):
        with pytest.raises(ConfigError, match="judge by 'loss'"):
            shoal.score(net, batches, criterion, task="regress")
    with pytest.raises(TrainingError, match="output_index"):
        compressed(Pair(), [(X, torch.arange(32) % 3)] * 2)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.relu, self.last = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.relu(self.body(x))
        return features, self.last(features)


def test_what_may_be_a_mistake_is_said_in_the_result() -> None:
    labels = torch.arange(32) % 2
    chance = compressed(head(10), [(X, labels)] * 2, epochs=0)
    assert any("10 outputs and no label is above 1" in note for note in chance.notes)
    assert "no label is above 1" in " ".join(outcome_lines(chance))
    soft = compressed(nn.Sequential(head(2), nn.Softmax(1)), [(X, labels)] * 2, epochs=0)
    assert any("softmax" in note for note in soft.notes)
    share = compressed(head(2), [(X, labels)] * 2, epochs=0, max_drop=1.0, evaluate=lambda *_: 0.97)
    assert any("a share of 1" in note for note in share.notes)
    images = X.clone()
    images[3, 2] = torch.nan
    with pytest.raises(DataError, match="in the validation data, sample 3 of batch 0"):
        shoal.compress(head(2), [(X, labels)], [(images, labels)], "easier")


def test_a_network_that_guesses_is_said_to() -> None:
    batches = [(X, torch.arange(32) % 2)] * 2
    torch.manual_seed(1)
    result = compressed(head(2), batches, epochs=0)
    assert any("50.0 % that one answer" in note for note in result.notes)


# ---------------------------------------------------------------------- what is found at the start


def test_a_wrong_loss_is_found_before_anything_takes_time() -> None:
    batches = [(X, torch.arange(32) % 2)] * 2
    with pytest.raises(TrainingError, match="the loss function returned None"):
        compressed(head(2), batches, loss=lambda *_: None, evaluate=lambda *_: 50.0)


def test_batches_without_samples_are_passed_over() -> None:
    labels = torch.arange(32) % 2
    batches = [(X[:0], labels[:0]), (X, labels)]
    assert compressed(head(2), batches, epochs=1).removed == 2
    with pytest.raises(DataError, match="the validation data are empty"):
        shoal.compress(head(2), batches, batches[:1], "easier")


def test_parts_of_other_types_are_named() -> None:
    labels = torch.arange(32) % 2
    with pytest.raises(DataError, match=r"validation data have inputs of .*float64"):
        shoal.compress(head(2), [(X, labels)], [(X.double(), labels)], "easier")


# ---------------------------------------------------------------------- on the command line


class Reads(nn.Module):
    """`Text` with attention that a mask shapes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv = nn.Embedding(30, 16), nn.Linear(16, 48)
        self.up, self.act, self.down = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, return_dict: bool = True) -> Any:
        x = self.embed(input_ids)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + F.scaled_dot_product_attention(q, k, v, attention_mask[:, None].bool())
        x = x + self.down(self.act(self.up(x)))
        logits = self.head(x[:, 0])
        return {"hidden_states": (x,), "logits": logits} if return_dict else (logits, x)


def tokenised() -> tuple[list[Any], list[Any]]:
    torch.manual_seed(0)
    return sentences(), sentences()


@pytest.mark.long
def test_a_text_classifier_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    untimed_commands(monkeypatch)
    run, data = str(tmp_path / "run"), f"{__file__}:tokenised"
    given = ["compress", f"{__file__}:Reads", "--data", data, "--method", "easier", "--out", run,
             "--max-drop", "100", "--epochs", "1", "--precision", "fp32"]  # fmt: skip
    assert main(given) == 0
    assert "batches: 2 train, 2 val; samples of 7" in capsys.readouterr().err
    net, dense = shoal.load(run, "best"), Reads().eval()
    assert (net.sites_left, len(net.sites)) == (0, 1)
    (batch, _), _ = tokenised()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    other = {**inputs, "attention_mask": torch.ones_like(batch["attention_mask"])}
    assert set(net(**inputs)) == set(dense(**inputs))
    assert not torch.equal(net(**inputs)["logits"], net(**other)["logits"])
    assert main(["inspect", run, "--data", data]) == 0
    assert "gelu, now line" in capsys.readouterr().out
