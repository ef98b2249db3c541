"""Write docs/options.md from the option classes: `python docs/options.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import shoal.methods  # noqa: F401  registers them
from shoal.importance import criteria
from shoal.options import DataOptions, Option, Options, Recipe, options_of
from shoal.search.method import methods
from shoal.search.options import JobOptions, MachineOptions, SearchOptions
from shoal.tasks import tasks

PAGE = Path(__file__).with_name("options.md")

INTRO = """\
# Options

Written by `python docs/options.py` from the classes that define the options; edit those, not this
page. An option has one name: `max_drop` is `max_drop=2` in `shoal.compress`, `--max-drop 2` on the
command line and `max_drop: 2` in a YAML file. Options of a criterion follow its name, as in
`--criterion "l1?scope=global"`; those of a method or a task may, as in
`--method "easier?how=identity"` and `--task "segment?ignore_index=0"`. `shoal compress --help`
shows what most people need, with `--method NAME` that method's options too, and `--help-all`
everything; `shoal recipes` shows the values of recipes.
"""

CONCERNS: dict[str, tuple[str, type[Options]]] = {
    "Search": ("How far to go and when to stop; the same for every method.", SearchOptions),
    "Training": ("A recipe; `--recipe NAME` starts from one that has a name.", Recipe),
    "Data": ("How a data set is read and split.", DataOptions),
    "Machine": ("Where the work is done and where latency is measured.", MachineOptions),
    "Runs of the command line": ("What a run is of, and whether it reports energy.", JobOptions),
}


def page() -> str:
    """Return the text of docs/options.md."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield INTRO
    for title, (about, cls) in CONCERNS.items():
        yield from (f"## {title}\n", f"{about}\n", *_table(cls))
    for title, registry in (("Tasks", tasks), ("Methods", methods), ("Criteria", criteria)):
        yield f"## {title}\n"
        names_of: dict[tuple[str, ...], list[str]] = {}  # criteria of one kind share their options
        for name in registry.names():
            if registry[name].__module__.startswith("shoal."):
                names_of.setdefault(tuple(_table(registry[name].Options)), []).append(f"`{name}`")
        for table, names in names_of.items():
            yield from (f"### {', '.join(names)}\n", *table)


def _table(cls: type[Options]) -> Iterator[str]:
    if not options_of(cls):
        yield "No options.\n"
        return
    yield "| option | default | values | meaning |"
    yield "|---|---|---|---|"
    for option in options_of(cls):
        yield f"| `{option.name}` | {_default(option)} | {_values(option)} | {option.help} |"
    yield ""


def _default(option: Option) -> str:
    if option.default_text:
        return option.default_text
    if option.default is None or option.default == ():
        return "none"
    if isinstance(option.default, tuple):
        return ", ".join(f"`{item}`" for item in option.default)
    if isinstance(option.default, bool):
        return "true" if option.default else "false"
    return f"`{option.default:g}`" if option.kind is float else f"`{option.default}`"


def _values(option: Option) -> str:
    if option.check is not None and option.check.choices:
        return ", ".join(f"`{choice}`" for choice in option.check.choices)
    kind = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    word = kind[option.of or option.kind] + ("s" if option.of and not option.lone else "")
    word += ", or several" if option.lone else ""
    limits = "" if option.check is None else f", {option.check.text}"
    where = "" if option.flag else "; not a flag"
    return word + (f", {option.unit}" if option.unit else "") + limits + where


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
