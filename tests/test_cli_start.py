from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import shoal
from shoal.cli import main
from shoal.cli.compress import compress_flags
from shoal.cli.flags import read_flags
from shoal.errors import OptionError
from shoal.options import DataOptions, Recipe, options_of
from shoal.search.options import MachineOptions, SearchOptions
from shoal.search.settings import option_classes

Capture = pytest.CaptureFixture[str]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("words", [["--help"], ["compress", "--help"], ["compress", "--help-all"]])
def test_help_does_not_wait_for_pytorch(words: list[str]) -> None:
    done = python(
        "import sys\nfrom shoal.cli import main\n"
        f"assert main({words}) == 0\n"
        "assert not {'torch', 'numpy', 'accelerate'} & set(sys.modules), 'imported too early'"
    )
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout


def test_the_list_of_commands_needs_no_options() -> None:
    """Each takes its milliseconds, and `--help` at most half a second."""
    done = python(
        "import sys\nfrom shoal.cli import main\nassert main(['--help']) == 0\n"
        "assert not {'yaml', 'importlib.metadata', 'shoal.options'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_package_imports_pytorch_when_a_name_is_used() -> None:
    done = python(
        "import sys, shoal\nassert 'torch' not in sys.modules\n"
        "assert 'capture' in dir(shoal)\nassert callable(shoal.capture)\n"
        "assert callable(shoal.models.cifar_resnet20)\nassert 'torch' in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there() -> None:
    for name in shoal.__all__:
        assert getattr(shoal, name) is not None
    with pytest.raises(AttributeError, match="module 'shoal' has no attribute 'capturee'"):
        _ = shoal.capturee


def test_python_m_shoal_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shoal", "--version"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout == f"shoal {shoal.__version__}\n"
    assert done.returncode == 0


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: shoal" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["export"], ["compress"], ["figure", "front"]])
def test_flags_without_a_value_show_no_type(
    words: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "-h"]) == 0
    shown = capsys.readouterr().out
    assert "--help" in shown
    assert "-h " in shown
    assert "bool" not in shown
    assert "range" not in shown


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "shoal", "compress", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) in (0, 1, 141)


# ---------------------------------------------------------------------- the flags


def test_every_option_is_a_flag_with_its_own_type_and_default() -> None:
    flags = {flag.option.name: flag for flag in compress_flags()}
    classes = [DataOptions, Recipe, SearchOptions, MachineOptions, *option_classes().values()]
    for known in (known for cls in classes for known in options_of(cls)):
        if not known.flag:
            continue
        flag = flags[known.name]
        assert flag.option.kind is known.kind
        assert known.help in flag.option.help
        if flag.panel != "Training" and not known.default_text and known.of is None:
            words = {True: "yes", False: "no"}
            plain = f"{known.default:g}" if known.kind is float else str(known.default)
            shown = words[known.default] if known.kind is bool else plain
            assert shown in flag.default, known.name


def test_a_method_of_ones_own_brings_its_flags(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from shoal.options import Options, option\n"
        "class Mine:\n"
        "    @dataclass(frozen=True, kw_only=True)\n"
        "    class Options(Options):\n"
        "        fold_above: float = option(0.9, 'Fold slopes above this.')\n"
    )
    assert main(["compress", "--method", f"{path}:Mine", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--fold-above" in shown
    assert "0.9" in shown
    assert main(["compress", "--help"]) == 0
    assert "--fold-above" not in capsys.readouterr().out


def test_lists_are_numbers_with_commas() -> None:
    given = {"mean": "0.5,0.4,0.3", "milestones": "0.5", "lr": None, "seed": 3}
    flags = compress_flags()
    assert read_flags(flags, given) == {"mean": [0.5, 0.4, 0.3], "milestones": [0.5], "seed": 3}
    with pytest.raises(OptionError, match="mean is 'a': give numbers with commas"):
        read_flags(flags, {"mean": "a"})


def flags_in(text: str) -> list[str]:
    return re.findall(r"^│ \*?\s*(--[a-z0-9-]+)", text, re.MULTILINE)


def test_the_help_shows_what_most_people_need_and_help_all_the_rest(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["compress", "--help"]) == 0
    short = flags_in(capsys.readouterr().out)
    assert 20 <= len(short) <= 26
    needed = {"--out", "--data", "--checkpoint", "--method", "--max-drop", "--epochs", "--help-all",
              "--runtime", "--recipe"}  # fmt: skip
    assert needed <= set(short)
    monkeypatch.setenv("COLUMNS", "200")  # where no long flag is cut
    assert main(["compress", "--help-all"]) == 0
    whole = flags_in(capsys.readouterr().out)
    spelled = [flag.spelling.split("/")[0] for flag in compress_flags()]
    assert {*short, *spelled, "--energy", "--country"} <= set(whole)
    assert len(whole) == len(set(whole))


def test_the_help_of_a_named_method_or_task_shows_its_options(capsys: Capture) -> None:
    assert main(["compress", "--help"]) == 0
    assert not {"--criterion", "--ignore-index"} & set(flags_in(capsys.readouterr().out))
    assert main(["compress", "--method", "layer_pruning", "--task", "segment", "--help"]) == 0
    assert {"--criterion", "--ignore-index"} <= set(flags_in(capsys.readouterr().out))
