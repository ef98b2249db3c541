from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import shoal
import small_runs
from changed import changed
from shoal.cli import main
from shoal.report import inspect_network
from shoal.report.inspection import gain_line

MODEL = f"{small_runs.__file__}:build"


def inspected(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main(["inspect", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_digits_network_without_data(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, "shoal:digits_resnet")
    assert len(found["sites"]) == 13
    assert {site["kind"] for site in found["sites"]} == {"relu"}
    assert found["input_shape"] == [1, 8, 8]
    assert found["sizes"] == ["the input may be [batch, 1, any, any]"]
    assert found["depth"] == 14
    assert len(found["blocks"]) == 6
    assert [b["name"] for b in found["blocks"] if not b["removable"]] == ["layer2.0"]
    assert all(block["reason"] for block in found["blocks"] if not block["removable"])
    assert found["criterion"] is None
    assert found["latency"] is None


@pytest.mark.long
def test_a_published_network(capsys: pytest.CaptureFixture[str]) -> None:
    """ResNet-20: 0.27 M parameters, 20 layers, 41 M MACs (He et al. 2016)."""
    found = inspected(capsys, "shoal:cifar_resnet20")
    assert found["input_shape"] == [3, 32, 32]
    assert found["depth"] == 20
    assert 0.265e6 < found["params"] < 0.275e6
    assert 40e6 < found["macs"] < 42e6
    assert len(found["sites"]) == 19


@pytest.mark.long
def test_blocks_have_their_shares_and_with_latency_their_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = inspected(capsys, "shoal:cifar_resnet20")
    for block in found["blocks"]:
        if block["removable"]:
            assert block["cost"]["macs"] == 2 * 16 * 16 * 9 * 32**2
            assert block["cost"]["macs_percent"] == pytest.approx(11.6, abs=0.1)
            assert block["cost"]["latency_ms"] is None
        else:
            assert block["cost"] is None
    found = inspected(capsys, MODEL, "--latency", "--input-shape", "1,8,8")
    assert found["blocks"][0]["cost"]["latency_ms"] is not None


def test_a_criterion_for_blocks_scores_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    given = (MODEL, "--data", "digits", "--samples", 60, "--criterion")
    found = inspected(capsys, *given, "block_influence")
    assert found["criterion"] == "block_influence"
    assert all(block["score"] > 0.0 for block in found["blocks"])
    assert all("score" not in site for site in found["sites"])
    assert main(["inspect", *map(str, given), "block_influence"]) == 0
    assert "block_influence" in capsys.readouterr().out
    assert main(["inspect", *map(str, given), "block_influenc"]) == 2
    assert "did you mean 'block_influence'" in capsys.readouterr().err


def test_with_data_every_rectifier_has_a_score(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, MODEL, "--data", "digits", "--samples", 200)
    assert found["samples"] == 200
    assert found["criterion"] == "entropy"
    for site in found["sites"]:
        assert 0.0 <= site["score"] <= 1.0  # bits of a coin
        assert 0.0 <= site["on_percent"] <= 100.0
        assert site["standard_error"] is None or site["standard_error"] > 0.0
    everything = inspected(capsys, MODEL, "--data", "digits", "--samples", 0)
    assert everything["samples"] > 1000
    assert {site["standard_error"] for site in everything["sites"]} == {0.0}
    assert everything["settled"]
    assert main(["inspect", MODEL, "--data", "digits", "--samples", "0"]) == 0
    out = capsys.readouterr().out
    assert f"scored on all {everything['samples']} training samples" in out
    assert "standard error" not in out


@pytest.mark.long
def test_the_tables_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", MODEL, "--data", "digits", "--latency", "--samples", "100"]) == 0
    out = capsys.readouterr().out
    for name in small_runs.SITES:
        assert f" {name} " in out
    words = (
        "leaky_relu", "entropy, bits", "± standard error", "residual blocks", "depth 5", "ms (",
        "MACs per sample", "4 of 4 rectifiers", "100 training samples",
    )  # fmt: skip
    for text in words:
        assert text in out


def last_lines(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert main(["inspect", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()[-3:]


@pytest.mark.long
def test_it_ends_with_what_could_be_gained_and_the_command_to_type_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five of the six blocks keep their shape, and each holds 17.2 % of the work."""
    assert last_lines(capsys, "shoal:digits_resnet", "--batch", 8) == [
        "could go: 5 of 6 blocks, with 86 % of the MACs; 13 of 13 rectifiers",
        "next, what the task needs of it, on your data D:",
        "  shoal inspect shoal:digits_resnet --checkpoint F --data D --batch 8",
    ]
    weights = tmp_path / "my weights.safetensors"
    save_file({n: t.contiguous() for n, t in small_runs.trained().state_dict().items()}, weights)
    model = f"{MODEL}?num_classes=10"
    given = (model, "--checkpoint", weights, "--data", "digits", "--samples", 50)
    shown = last_lines(capsys, *given, "--batch", 8)
    assert shown[0].startswith("could go: 1 of 1 blocks, with ")
    assert shown[0].endswith(" % of the MACs; 4 of 4 rectifiers")
    assert shown[1] == "next, make it faster within a point of quality:"
    assert shown[2] == (
        f"  shoal compress '{model}' --checkpoint '{weights}' --data digits --latency-batch 8 "
        "--method shoal --out run"
    )
    found = inspected(capsys, *given, "--runtime", "onnxruntime", "--mean", "0.5")
    assert found["next"] == (
        f"shoal compress '{model}' --checkpoint '{weights}' --data digits --mean 0.5 "
        "--runtime onnxruntime --method shoal --out run"
    )


def test_a_block_in_a_block_is_not_counted_twice() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.outer = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = x + self.inner(x)
            return x + self.outer(y)

    net = shoal.capture(Nested(), torch.randn(2, 4, 8, 8))
    found = inspect_network(net, "nested")
    shares = [found.costs[block.name].macs_percent for block in net.blocks if block.removable]
    assert len(shares) == 2
    said = f"could go: 2 of 2 blocks, with {max(shares):.0f} % of the MACs"
    assert gain_line(found) == said
    for share, words in ((30.0, "30 %"), (-2.0, "0 %"), (101.0, "101 %")):
        doubt = "; not to be trusted" if share > 100 else ""
        costs = {k: replace(cost, latency_percent=share) for k, cost in found.costs.items()}
        ending = f" and {words} of the latency (the sum of each by itself{doubt})"
        assert gain_line(replace(found, costs=costs)) == said + ending


def test_of_a_folder_the_next_command_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = small_runs.captured().copy()
    shoal.drop_(net, [block.name for block in net.blocks])
    changed(shoal.linearize_, net, [site.name for site in net.sites], how="identity")
    shoal.save(net, tmp_path / "net")
    assert last_lines(capsys, tmp_path / "net") == [
        "no rectifier or block is left to go",
        "next, how fast it is here:",
        f"  shoal benchmark {tmp_path / 'net'}",
    ]


def test_a_shape_that_was_a_guess_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{MODEL}?in_channels=3"]) == 2
    assert "tried with an input of 3×224×224" in capsys.readouterr().err
    assert main(["inspect", MODEL, "--input-shape", "1,8,8"]) == 0


def test_a_saved_network_shows_what_is_linearized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = changed(shoal.linearize_, small_runs.captured().copy(), "act", how="identity")
    net.plan.base = MODEL
    shoal.save(net, tmp_path / "net")
    found = inspected(capsys, tmp_path / "net", "--data", "digits", "--samples", 100)
    states = {site["name"]: site["linearized"] for site in found["sites"]}
    assert states == {"relu": None, "act": "identity", "relu_1": None, "last": None}
    scores = {site["name"]: site["score"] for site in found["sites"]}
    assert scores["act"] is None
    assert scores["last"] is not None
