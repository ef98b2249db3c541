from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shoal.errors import ConfigError, NameNotFoundError
from shoal.targets import (
    accepts,
    call_target,
    format_target,
    import_target,
    parse_keywords,
    parse_target,
    parse_yaml,
)


@pytest.fixture(autouse=True)
def _restore_imports():
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10", 10),
        ("-3", -3),
        ("0.1", 0.1),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("relu", "relu"),
        ("'10'", "10"),
        ("[1, 2]", [1, 2]),
        ("a=b", "a=b"),
    ],
)
def test_keywords_have_the_types_of_yaml_scalars(text: str, value: object):
    keywords = parse_keywords(f"key={text}")
    assert keywords == {"key": value}
    assert type(keywords["key"]) is type(value)


def test_target_and_keywords_are_split_at_the_question_mark():
    assert parse_target("a.py:f?x=1&y=two") == ("a.py:f", {"x": 1, "y": "two"})
    assert parse_target("pkg.mod:f") == ("pkg.mod:f", {})
    assert parse_target("pkg.mod:f?") == ("pkg.mod:f", {})


def test_formatting_is_the_inverse_of_parsing():
    keywords = {
        "a": 1,
        "b": 0.25,
        "c": None,
        "d": True,
        "e": "x",
        "f": "10",
        "g": "",
        "h": [1, "y"],
    }
    assert parse_target(format_target("m:f", keywords)) == ("m:f", keywords)
    assert format_target("m:f", {}) == "m:f"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("classes", "'classes' is not key=value"),
        ("=3", "'=3' is not key=value"),
        ("a=1&", "'' is not key=value"),
        ("a=1&a=2", "'a' is given twice"),
        ("a='x", "the value of 'a' cannot be read"),
    ],
)
def test_malformed_keywords_are_named(text: str, part: str):
    with pytest.raises(ConfigError) as caught:
        parse_keywords(text)
    assert part in str(caught.value)


def test_factory_from_a_file_finds_the_modules_beside_it(tmp_path: Path):
    write(tmp_path, "shoal_test_helper.py", "WIDTH = 7\n")
    path = write(
        tmp_path,
        "shoal_test_nets.py",
        "from shoal_test_helper import WIDTH\ndef build(scale=1):\n    return WIDTH * scale\n",
    )
    factory = import_target(f"{path}:build")
    assert factory(scale=2) == 14
    # Worker processes that start afresh can find it by this name.
    assert factory.__module__ == "shoal_test_nets"


def test_a_file_that_is_a_namesake_of_a_module_is_still_the_one_executed(tmp_path: Path):
    path = write(tmp_path, "json.py", "def dumps():\n    return 'mine'\n")
    assert import_target(f"{path}:dumps")() == "mine"


def test_factory_from_a_module_in_the_current_folder(tmp_path: Path, monkeypatch):
    (tmp_path / "shoal_test_package").mkdir()
    write(tmp_path / "shoal_test_package", "__init__.py", "")
    write(tmp_path / "shoal_test_package", "nets.py", "class Net:\n    small = dict\n")
    monkeypatch.chdir(tmp_path)
    assert import_target("shoal_test_package.nets:Net.small") is dict


def error_of(target: str) -> str:
    with pytest.raises((ConfigError, NameNotFoundError)) as caught:
        import_target(target)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_cannot_be_imported_is_one_line(tmp_path: Path):
    write(tmp_path, "bad_syntax.py", "def build(:\n")
    write(tmp_path, "bad_import.py", "\nimport shoal_no_such_package\n")
    write(tmp_path, "bad_exit.py", "import sys\nsys.exit('usage: train')\n")
    write(tmp_path, "good.py", "answer = 42\ndef build():\n    pass\n")
    assert "does not name a factory" in error_of("build")
    assert "does not exist" in error_of(f"{tmp_path}/none.py:build")
    assert "is a folder" in error_of(f"{tmp_path}/:build")
    assert "is neither a Python file nor a module" in error_of("my-module:build")
    assert "there is no module 'shoal_nowhere'" in error_of("shoal_nowhere.nets:build")
    assert "SyntaxError" in error_of(f"{tmp_path}/bad_syntax.py:build")
    message = error_of(f"{tmp_path}/bad_import.py:build")
    assert "No module named 'shoal_no_such_package'" in message
    assert "bad_import.py:2" in message
    assert "SystemExit: usage: train" in error_of(f"{tmp_path}/bad_exit.py:build")
    assert "did you mean 'build'?" in error_of(f"{tmp_path}/good.py:biuld")
    assert "cannot be called, its type is int" in error_of(f"{tmp_path}/good.py:answer")


def test_a_pickled_model_is_not_taken_for_code(tmp_path: Path):
    path = write(tmp_path, "model.pt", "x")
    assert "a pickled model is never loaded" in error_of(f"{path}:model")


def passing_on(**kwargs: int) -> int:
    return takes(**kwargs)


def takes(size: int, *, depth: int = 2) -> int:
    return size // depth


def test_arguments_are_checked_before_the_call():
    assert call_target(takes, {"size": 6}, "m:takes") == 3
    with pytest.raises(ConfigError, match=r"m:takes does not take 'dept': did you mean 'depth'"):
        call_target(takes, {"size": 6, "dept": 3}, "m:takes")
    with pytest.raises(ConfigError, match=r"m:takes needs the argument 'size'"):
        call_target(takes, {}, "m:takes")
    with pytest.raises(ConfigError, match=r"m:f does not take 'dept'"):
        call_target(passing_on, {"size": 6, "dept": 3}, "m:f")


def test_an_error_inside_a_factory_is_one_line_with_its_place():
    with pytest.raises(ConfigError, match=r"m:takes failed: ZeroDivisionError.*test_targets.py"):
        call_target(takes, {"size": 1, "depth": 0}, "m:takes")


def test_a_factory_that_ends_the_process_is_one_line_with_its_place():
    for code in (0, 3, "no such file"):

        def leaving(code=code):
            sys.exit(code)

        with pytest.raises(ConfigError, match=r"m:leaving failed: SystemExit.*test_targets.py"):
            call_target(leaving, {}, "m:leaving")


def test_only_named_parameters_are_accepted():
    assert accepts(takes, "depth")
    assert not accepts(takes, "width")
    assert not accepts(passing_on, "width")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr: 1e-3", 1e-3),
        ("lr: [1e-3, 2e-4]", [1e-3, 2e-4]),
        ("lr: 0.001", 0.001),
        ("lr: .5", 0.5),
        ("lr: -1E+2", -100.0),
        ("lr: .inf", float("inf")),
        ("lr: 10", 10),
        ("lr: 1.2.3", "1.2.3"),
        ("lr: e3", "e3"),
        ("lr: '1e-3'", "1e-3"),
        ("lr: null", None),
    ],
)
def test_numbers_in_yaml_are_those_of_its_version_1_2(text: str, value: object):
    found = parse_yaml(text)["lr"]
    assert found == value
    assert type(found) is type(value)


def test_numbers_in_a_list_of_keywords_are_numbers():
    assert parse_keywords("rates=[1e-3, 2e-4]") == {"rates": [1e-3, 2e-4]}
