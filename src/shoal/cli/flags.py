"""Every option as a flag: made from the option classes, which state help, type and default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from shoal.cli.completion import completion_of
from shoal.errors import OptionError
from shoal.options import DataOptions, Option, Options, options_of


@dataclass(frozen=True)
class Flag:
    """An option on the command line."""

    option: Option
    panel: str  # the heading it stands under in the help
    default: str  # as the help shows it
    shown: bool = True  # in the short help; `--help-all` shows all

    @property
    def spelling(self) -> str:
        """The flag as typer takes it."""
        dashed = self.option.name.replace("_", "-")
        return f"--{dashed}/--no-{dashed}" if self.option.kind is bool else f"--{dashed}"

    @property
    def annotation(self) -> Any:
        """The parameter's annotation. A list is one text with commas."""
        listed = self.option.of is not None
        kind = str if listed else self.option.kind
        made = typer.Option(
            self.spelling,
            help=f"{self.option.help} [dim]Default: {self.default}.[/dim]",
            rich_help_panel=self.panel,
            show_default=False,
            metavar="A,B,…" if listed else None,
            hidden=not self.shown,
            autocompletion=completion_of(self.option),
        )
        return Annotated[kind | None, made]


def flags_of(groups: Mapping[str, Mapping[str, type[Options]]]) -> list[Flag]:
    """Return one flag for each option that the command line has.

    The groups are headings, each with the classes under it by name; an option that several of
    them have is one flag with the help and the defaults of all.
    """
    flags: dict[str, Flag] = {}
    for panel, classes in groups.items():
        found: dict[str, dict[str, Option]] = {}
        for name, cls in classes.items():
            for known in options_of(cls):
                if known.flag:
                    found.setdefault(known.name, {})[name] = known
        for name, owners in found.items():
            default = _each({of: known.text(known.default) for of, known in owners.items()})
            text = _each({of: known.help for of, known in owners.items()}, " ")
            if len(owners) < len(classes) and len({known.help for known in owners.values()}) == 1:
                text = f"For {' and '.join(owners)}: {text}"
            first = next(iter(owners.values()))
            flags.setdefault(name, Flag(replace(first, help=text), panel, default))
    return list(flags.values())


def _each(texts: Mapping[str, str], between: str = ", ") -> str:
    """Return one text for all, or each with its name before it where they differ."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return between.join(f"{name}: {text}" for name, text in texts.items())


def read_flags(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, in the types of their options."""
    known = {flag.option.name: flag.option for flag in flags}
    return {
        name: _items(known[name], value) if name in known and known[name].of else value
        for name, value in given.items()
        if value is not None
    }


def read_values(**given: str | None) -> dict[str, Any]:
    """Return options of reading data that a command takes by itself, as `read_flags` does."""
    return read_flags(flags_of({"Data": {"": DataOptions}}), given)


def read_names(option: str, text: str) -> list[str]:
    """Return the names between the commas, each once."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise OptionError(option, text, "names with commas between them")
    return names


def _items(known: Option, text: str) -> list[Any]:
    assert known.of is not None  # only lists come here
    try:
        return [known.of(part.strip()) for part in text.split(",")]
    except ValueError:
        wanted = "numbers with commas between them, such as 0.5,0.75"
        raise OptionError(known.name, text, wanted) from None
