from __future__ import annotations

import subprocess
import sys

import pytest

import shoal
from shoal.cli import main
from shoal.cli.flags import FLAGS, read_flags
from shoal.config import Config
from shoal.errors import ConfigError


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_help_does_not_wait_for_pytorch() -> None:
    done = python(
        "import sys\nfrom shoal.cli import main\n"
        "assert main(['--help']) == 0\nassert main(['compress', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'accelerate'} & set(sys.modules), 'imported too early'"
    )
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout


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


def test_every_field_of_the_configuration_is_a_flag() -> None:
    own = {"model", "data", "checkpoint"}  # parameters of the command itself
    assert {flag.name for flag in FLAGS} == set(Config.model_fields) - own


def test_the_help_tells_the_true_defaults() -> None:
    for flag in FLAGS:
        default = Config.model_fields[flag.name].default
        if isinstance(default, bool):
            assert flag.default == ("yes" if default else "no"), flag.name
        elif default is not None:
            assert flag.default == str(default), flag.name


def test_the_flags_have_the_fields_types() -> None:
    for flag in FLAGS:
        annotation = str(Config.model_fields[flag.name].annotation)
        assert flag.kind.__name__ in annotation, flag.name


def test_lists_are_numbers_with_commas() -> None:
    given = {"mean": "0.5,0.4,0.3", "milestones": "0.5", "lr": None, "seed": 3}
    assert read_flags(given) == {"mean": [0.5, 0.4, 0.3], "milestones": [0.5], "seed": 3}
    with pytest.raises(ConfigError, match="mean is 'a': give numbers with commas"):
        read_flags({"mean": "a"})


def test_every_flag_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in FLAGS:
        assert flag.spelling.split("/")[0][:20] in shown, flag.name
