"""The code on the pages for users runs, in the order of each page; what cannot run here is checked.

A block that begins with `# needs: …` (a GPU, the network, data or time) says so to the reader as
well: its commands are parsed, and its names and keywords looked up. All else runs in an empty
folder, on digits, with a search that takes one step and times nothing.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.cli import main
from shoal.data import data_sets
from small_runs import FakeGauge, untimed_commands

TOP = Path(__file__).resolve().parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
SLOW = {"deploy", "export", "own-model", "own-training"}
NEEDS = "# needs: "
FENCE = re.compile(r'^```(\w*)(?: title="([^"\n]+)")?\n(.*?)^```$', re.M | re.S)
SHORT = {"max_drop": 100.0, "remove": 1, "epochs": 1}
SHORT_FLAGS = ["--max-drop", "100", "--remove", "1", "--epochs", "1", "--dense-epochs", "1"]


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    language: str
    title: str  # the file that the reader is to save it as
    code: str
    line: int  # of the page, where the code begins

    @property
    def runs(self) -> bool:
        """Whether it can run here."""
        return not self.code.startswith(NEEDS)

    @property
    def commands(self) -> Iterator[list[str]]:
        """The words of each command; a line may go on after a backslash."""
        for line in self.code.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = shlex.split(command, comments=True)
                if words:
                    yield words


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m[1], m[2] or "", m[3], text[: m.start(3)].count("\n") + 1)
        for m in FENCE.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_code_says_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(FENCE.findall(text))
    for block in blocks_of(page):
        assert block.language in {"", "python", "sh"}, f"line {block.line}"
        if not block.language:  # what a command shows, not a command
            assert not re.search(r"^(shoal|pip|make|python3?|import|from) ", block.code, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_calls_are_known(page: Path) -> None:
    for block in blocks_of(page):
        place = f"{page.name}:{block.line}"
        if block.language == "python":
            check_calls(block.code, place)
        elif block.language == "sh":
            for words in block.commands:
                run_command(words, runs=False, place=place)


RUN = [
    pytest.param(page, marks=[pytest.mark.slow] * (page.stem in SLOW), id=page.name)
    for page in PAGES
    if any(block.language for block in blocks_of(page))
]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", RUN)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    untimed_commands(monkeypatch)
    monkeypatch.setattr(
        "shoal.search.compress.Gauge",
        lambda data, batches, runtimes, task: FakeGauge(data.val, task=task),
    )
    monkeypatch.setattr(shoal, "compress", shortened(shoal.compress))
    monkeypatch.setattr(shoal.data, "load_data", few_samples(shoal.data.load_data))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    if page.name == "README.md":  # whose run takes half an hour
        data = shoal.data.load_data("digits")
        dense = shoal.models.digits_resnet(width=4)
        shoal.compress(dense, data.train, data.val, "easier", out="run")
    for block in blocks_of(page):
        place = f"{page.name}:{block.line}"
        if block.title:
            Path(block.title).write_text(block.code, encoding="utf-8")
        if block.runs and block.language == "python":
            torch.manual_seed(0)
            exec(compile(block.code, place, "exec"), names)
        elif block.runs and block.language == "sh":
            for words in block.commands:
                run_command(words, runs=True, place=place)


def shortened(compress: Callable[..., shoal.Result]) -> Callable[..., shoal.Result]:
    """Return a search of one step, by whatever a page asks for."""

    @functools.wraps(compress)
    def short(*given: Any, **options: Any) -> shoal.Result:
        ends = {name: 1 for name in ("dense_epochs", "final_epochs") if name in options}
        quick = {} if "method" in options or len(given) > 3 else {"tries": 0}
        return compress(*given, **{**options, **SHORT, **quick, **ends})

    return short


def few_samples(load: Callable[..., shoal.data.DataSet]) -> Callable[..., shoal.data.DataSet]:
    @functools.wraps(load)
    def few(spec: str, **options: Any) -> shoal.data.DataSet:
        if spec.partition(":")[0] not in data_sets:  # a factory takes none
            return load(spec, **options)
        return load(spec, **{"train_samples": 150, "val_samples": 100, **options})

    return few


def run_command(words: list[str], *, runs: bool, place: str) -> None:
    """Run a command of shoal, or check that there is what another one names."""
    program, *rest = words
    if "-m" in rest and rest[rest.index("-m") + 1] == "shoal":  # torchrun …
        program, rest = "shoal", rest[rest.index("-m") + 2 :]
    if program == "shoal":
        short = SHORT_FLAGS if rest[0] == "compress" else []
        code = main([*rest, *short] if runs else [*rest, "--help"])
        assert code == 0, f"{place}: {shlex.join(words)}"
    elif program == "make":
        makefile = (TOP / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{target}:", makefile, re.M) for target in rest), place
    elif program == "pip":
        project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = re.findall(r"\[(.*?)\]", " ".join(rest))
        assert {e for some in extras for e in some.split(",")} <= {
            *project["optional-dependencies"]
        }, place
    elif program == "python" and rest[0].endswith(".py"):
        assert (TOP / rest[0]).is_file(), place
    else:
        assert program in {"python3", ".", "curl", "git", "hf", "sha256sum"}, f"{place}: {words}"


def check_calls(code: str, place: str) -> None:
    """Check that the functions of shoal which a block calls exist and have these keywords."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and re.match(r"shoal(\.\w+)+$", ast.unparse(node.func)):
            called: Any = operator.attrgetter(ast.unparse(node.func).partition(".")[2])(shoal)
            parameters = inspect.signature(called).parameters
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                assert {k.arg for k in node.keywords} <= {*parameters}, place


def test_the_flags_that_pages_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    known = {"--nproc-per-node", "--multi-gpu", "--num-processes", "--upgrade"}  # of launchers, pip
    commands = ["inspect", "compress", "benchmark", "report", "export", "push", "compare"]
    commands += ["sweep", "reproduce", "twin", "robustness", "recipes", "demo"]
    for words in [[], *([command] for command in commands)]:
        assert main([*words, "--help-all" if "compress" in words else "--help"]) == 0
    known |= set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if page.name not in {"measured.md", "options.md"}:  # benchmarks have flags of their own
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
            assert named - known == set(), page.name


def test_the_reference_has_every_public_name() -> None:
    text = (TOP / "docs" / "reference.md").read_text(encoding="utf-8")
    shown = {path.rpartition(".")[2] for path in re.findall(r"^::: ([\w.]+)$", text, re.M)}
    assert {*shoal.__all__} - {"__version__"} <= shown
