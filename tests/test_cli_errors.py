"""Bad input gets one line that says what is wrong and what to do, and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import shoal
import small_runs
from resealed import write_resealed
from shoal.cli import main

MODEL = f"{small_runs.__file__}:build"
DIGITS = ["--data", "digits", "--train-samples", "100", "--precision", "fp32"]

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    small_runs.untimed_commands(monkeypatch)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line that must be refused, and returns the one line it prints for it."""

    def check(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        seen = capsys.readouterr()
        assert seen.out == ""
        lines = seen.err.splitlines()
        told = [line for line in lines if not line.startswith("  ")]  # without phases
        assert len(told) <= 5, lines  # what it works on, notes, and the one line
        assert lines[-1].startswith("shoal: ")
        assert not any("Traceback" in line or "Error" in line for line in lines)
        return lines[-1]

    return check


@pytest.fixture
def compress(refused: Refused, tmp_path: Path) -> Refused:
    """Runs `shoal compress` on a task that is fine but for the words given."""

    def check(*words: object, model: object = MODEL, data: object = None) -> str:
        given = DIGITS if data is None else ["--data", data, "--precision", "fp32"]
        return refused("compress", model, *given, "--out", tmp_path / "run", *words)

    return check


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of eight small images each."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


# ---------------------------------------------------------------------- the model


def test_a_missing_checkpoint(compress: Refused, tmp_path: Path) -> None:
    assert "w.pt" in compress("--checkpoint", tmp_path / "w.pt")


def test_a_checkpoint_of_another_architecture(compress: Refused, tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "w.pt")
    line = compress("--checkpoint", tmp_path / "w.pt")
    assert "does not fit the model" in line


def test_weights_that_are_not_numbers(compress: Refused, tmp_path: Path) -> None:
    state = small_runs.build().state_dict()
    state["conv2.weight"] = state["conv2.weight"].clone()
    state["conv2.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    line = compress("--checkpoint", tmp_path / "w.safetensors")
    assert "NaN" in line
    assert "conv2.weight" in line


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("shoal:cifar_resnet21", "did you mean"),
        ("shole:cifar_resnet20", "did you mean 'shoal'"),
        ("resnet26dd", "is no folder here, and no model of"),
        ("nowhere.py:build", "'nowhere.py' does not exist"),
        (f"{small_runs.__file__}:bild", "did you mean 'build'"),
        (f"{small_runs.__file__}:build?colour=red", "does not take 'colour'"),
    ],
)
def test_an_unknown_model(compress: Refused, model: str, words: str) -> None:
    assert words in compress(model=model)


class Linear(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x.flatten(1))
        return x.relu() if x.sum() > 0 else x


def test_a_network_without_rectifiers(compress: Refused) -> None:
    assert "no rectifier to linearize: choose method" in compress(
        "--method", "easier", model=f"{__file__}:Linear"
    )


def test_a_network_that_cannot_be_captured(compress: Refused) -> None:
    assert "test_cli_errors.py" in compress(model=f"{__file__}:Branching")


def test_a_folder_is_no_model_to_compress(compress: Refused, tmp_path: Path) -> None:
    assert "compress takes a model" in compress(model=tmp_path)
    assert "is no folder here" in compress(model="nowhere")


def test_options_that_nothing_would_read(compress: Refused, refused: Refused) -> None:
    assert "add --energy" in compress("--country", "DEU")
    assert "without final_epochs" in compress("--final-lr", 0.1)
    assert "'easier' has no option moves" in compress("--method", "easier", "--moves", "drop")
    assert "add --data" in refused("inspect", "shoal:digits_resnet", "--criterion", "lesion")


def test_criteria_are_looked_up_before_the_data_are_read(compress: Refused) -> None:
    assert "did you mean 'entropy'" in compress(
        "--method", "easier", "--criterion", "entropi", data="folder:nowhere"
    )


def test_an_unknown_site() -> None:
    net = small_runs.captured().copy()
    with pytest.raises(shoal.ShoalError, match="unknown site 'rely': did you mean 'relu'"):
        shoal.linearize_(net, "rely", loader=small_runs.digits().train)


# ---------------------------------------------------------------------- the data


def test_an_empty_folder(compress: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in compress(data=f"folder:{tmp_path / 'empty'}")
    assert "nowhere" in compress(data=f"folder:{tmp_path / 'nowhere'}")


def test_one_class_only(compress: Refused, photos: Path) -> None:
    shutil.rmtree(photos / "cat")
    assert "class" in compress(data=f"folder:{photos}")


def test_an_image_that_cannot_be_decoded_is_named_and_can_be_left_out(
    compress: Refused, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dog" / "3.png").write_bytes(b"no picture at all")
    size = ("--image-size", 8, "--batch-size", 8)
    line = compress(*size, data=f"folder:{photos}")
    assert "3.png" in line
    assert "skip such files with --skip-broken" in line
    done = main(
        ["compress", MODEL, "--data", f"folder:{photos}", "--image-size", "8", "--batch-size", "8",
         "--skip-broken", "--remove", "1", "--epochs", "0", "--out", str(tmp_path / "kept")]
    )  # fmt: skip
    assert done == 0
    assert "3.png" in capsys.readouterr().err


def test_an_unknown_kind_of_data(compress: Refused) -> None:
    assert "did you mean 'digits'" in compress(data="digit")
    assert "did you mean 'folder'" in compress(data="foldr:x")


def test_a_batch_of_one(compress: Refused) -> None:
    assert "batch_size of 2 or more" in compress("--batch-size", 1)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max-drop", "-1"], "--max-drop is -1.0: give a number of points, 0 or more"),
        (["--method", "esier"], "unknown method 'esier': did you mean 'easier'"),
        (
            ["--method", "easier", "--criterion", "entrpy"],
            "unknown criterion 'entrpy': did you mean 'entropy'",
        ),
        (["--recipe", "finetun"], "unknown recipe 'finetun': did you mean 'finetune'"),
        (["--how", "lines"], "--how is 'lines': give one of line, identity"),
        (["--per-step", "0"], "--per-step is 0: give a whole number, 1 or more"),
        (["--lr", "-1"], "--lr is -1.0"),
        (["--mean", "0.5,x"], "--mean is '0.5,x': give numbers"),
        (["--max-drop", "much"], "--max-drop"),
        (["--max-dorp", "1"], "--max-dorp"),
        (["--val-fraction", "2"], "--val-fraction is 2.0: give a number, above 0 and below 1"),
    ],
)
def test_wrong_options(compress: Refused, words: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in compress(*words)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(compress: Refused, refused: Refused) -> None:
    assert "there is no device 'cuda' here" in compress("--device", "cuda")
    assert "there is no device 'cuda' here" in refused("inspect", MODEL, "--device", "cuda")
    assert "gpu" in compress("--device", "gpu")


def test_wrong_command_lines(refused: Refused) -> None:
    assert "comprss" in refused("comprss")
    assert "--out" in refused("compress", MODEL, *DIGITS)
    assert "MODEL" in refused("inspect")
    assert "--input-shape is '3,x'" in refused("inspect", MODEL, "--input-shape", "3,x")


def test_what_has_to_be_given(refused: Refused, tmp_path: Path) -> None:
    assert "no model is given" in refused("compress", "--data", "digits", "--out", tmp_path / "x")
    assert "no data are given: add --data D" in refused("compress", MODEL, "--out", tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("per_stp: 2", "unknown option 'per_stp': did you mean 'per_step'"),
        ("epochs: many", "epochs is 'many'"),
        ("lr: [1", "cannot be read as YAML"),
        ("- 1", "must hold 'option: value' lines"),
        (None, "there is no configuration file"),
    ],
)
def test_a_wrong_configuration(
    compress: Refused, tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    assert words in compress("--config", tmp_path / "c.yaml")


# ---------------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of one step."""
    folder = tmp_path_factory.mktemp("errors") / "run"
    with pytest.MonkeyPatch.context() as patch:
        small_runs.untimed_commands(patch)
        words = ["compress", MODEL, *DIGITS, "--remove", "1", "--out", str(folder)]
        assert main([*words, "--max-drop", "100"]) == 0
    return folder


@pytest.fixture
def finished(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_changed_configuration_is_named(compress: Refused, finished: Path) -> None:
    same = ("--remove", 1, "--max-drop", 100)
    assert "--epochs was 1 and is 2" in compress(*same, "--epochs", 2)
    assert "--batch-size was 128 and is 64" in compress(*same, "--batch-size", 64)
    assert '--augment was "auto" and is "shift"' in compress(*same, "--augment", "shift")
    assert json.loads((finished / "result.json").read_text())["removed"] == 1


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written(compress: Refused, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    line = compress("--out", tmp_path / place)
    assert str(tmp_path / place) in line
    assert "choose another folder" in line or "give a folder" in line


def test_a_foreign_folder(compress: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert "holds files that are not a run's" in compress("--out", tmp_path / "mine")


def test_damage_in_a_saved_network(refused: Refused, finished: Path) -> None:
    weights = finished / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "damaged" in refused("inspect", finished)
    merged = finished / "merged" / "model.safetensors"
    merged.write_bytes(merged.read_bytes()[:-8])
    assert "damaged" in refused("benchmark", finished)
    (finished / "best" / "network.json").write_text("{")
    assert "network.json" in refused("inspect", finished)


def test_an_operator_that_is_not_known(refused: Refused, finished: Path) -> None:
    path = shutil.copytree(finished / "best", finished.parent / "alone") / "network.json"
    write_resealed(path, path.read_text().replace('"type": "ReLU"', '"type": "Relu7"', 1))
    assert "Relu7, which is not registered here" in refused("inspect", path.parent)


def test_a_run_without_a_result_is_told_as_that(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "begun"
    words = ["compress", MODEL, *DIGITS, "--epochs", "0", "--out", str(out)]
    assert main(words) == 0
    for part in ("result.json", "best", "merged"):
        path = out / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    capsys.readouterr()
    assert main(["report", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "not finished" in shown
    assert "best'" not in shown
    for command in (["robustness", out], ["benchmark", out], ["inspect", out]):
        assert "has no result yet" in refused(*command)


def test_a_folder_in_which_no_step_was_finished_is_begun_anew(
    compress: Refused, tmp_path: Path
) -> None:
    assert "outputs" in compress(model=f"{MODEL}?num_classes=7")
    words = ["compress", MODEL, *DIGITS, "--epochs", "0", "--remove", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0


def test_folders_that_are_no_runs(refused: Refused, tmp_path: Path) -> None:
    assert "is not a run's folder" in refused("report", tmp_path)
    assert "there is no folder" in refused("report", tmp_path / "nowhere")
    assert "has no network.json" in refused("benchmark", tmp_path)


# ---------------------------------------------------------------------- other ends


def test_a_defect_is_one_line_too_and_debug_shows_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shoal import report

    # A function of the test's own would be the user's code.
    monkeypatch.setattr(report, "read_run", Mock(side_effect=ValueError("of two\nlines")))
    assert main(["report", "somewhere"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("shoal: unexpected ValueError: of two lines (this is a defect of shoal")
    assert len(err.splitlines()) == 1
    assert main(["report", "somewhere", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_code_of_the_users_own_that_fails_is_named(compress: Refused, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(
        "import shoal\nfrom shoal.tasks import find_task\n\n"
        "class Mine(type(find_task('classify'))):\n"
        "    def hits(self, output, target):\n"
        "        raise StopIteration('of two\\nlines')\n"
    )
    line = compress("--task", f"{tmp_path / 'failing.py'}:Mine")
    assert f"'{tmp_path / 'failing.py'}', line 6, raised StopIteration: of two lines" in line
    assert "mend it (--debug shows more)" in line
    assert "defect of shoal" not in line


def test_code_of_the_users_own_that_ends_the_process_is_named(
    compress: Refused, tmp_path: Path
) -> None:
    file = tmp_path / "leaving.py"
    file.write_text(
        "import sys\n\nfrom shoal.tasks import find_task\n\n"
        "class Mine(type(find_task('classify'))):\n"
        "    def hits(self, output, target):\n"
        "        sys.exit(0)\n\n"
        "def build(**given):\n"
        "    sys.exit('no weights')\n"
    )
    assert f"'{file}', line 7, raised SystemExit: 0: mend it" in compress("--task", f"{file}:Mine")
    line = compress(model=f"{file}:build")
    assert f"{file}:build failed: SystemExit: no weights" in line


def test_another_task_is_named_by_its_flag(compress: Refused) -> None:
    line = compress(model=f"{small_runs.__file__}:build?num_classes=1")
    assert "give --task binary" in line


def test_debug_shows_where_bad_input_was_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--debug", "report", "nowhere"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("shoal: there is no folder 'nowhere'")


def test_too_little_memory_says_what_to_make_smaller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shoal import report

    def full(folder: Path) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(report, "read_run", full)
    assert main(["report", "somewhere"]) == 1
    assert "smaller batches (--batch-size, or --batch" in capsys.readouterr().err


def test_only_the_main_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["report", "nowhere"]) == 2
    assert capsys.readouterr() == ("", "")
