"""Every option as a flag: made from the option classes, which state help, type and default."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Annotated, Any

import typer

from shoal.errors import OptionError
from shoal.options import DataOptions, Option, Options, options_of

__all__ = ["Flag", "flags_of", "read_flags", "read_names", "read_values", "with_flags"]


@dataclass(frozen=True)
class Flag:
    """An option on the command line.

    Attributes:
        option: what it sets.
        panel: the heading it stands under in the help.
        default: the default as the help shows it.
    """

    option: Option
    panel: str
    default: str

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
        )
        return Annotated[kind | None, made]


def flags_of(groups: Iterable[tuple[str, Mapping[str, type[Options]]]]) -> list[Flag]:
    """Return one flag for each option that the command line has.

    Args:
        groups: headings, each with the classes under it by name; an option that several of them
            have is one flag with the help and the defaults of all.
    """
    flags: dict[str, Flag] = {}
    for panel, classes in groups:
        found: dict[str, dict[str, Option]] = {}
        for name, cls in classes.items():
            for known in options_of(cls):
                if known.flag:
                    found.setdefault(known.name, {})[name] = known
        for name, owners in found.items():
            if name not in flags:
                flags[name] = _flag(panel, owners, every=len(owners) == len(classes))
    return list(flags.values())


def _flag(panel: str, owners: Mapping[str, Option], *, every: bool) -> Flag:
    first = next(iter(owners.values()))
    default = _each({name: _shown(known) for name, known in owners.items()})
    text = _each({name: known.help for name, known in owners.items()}, " ")
    if not every and len({known.help for known in owners.values()}) == 1:
        text = f"For {' and '.join(owners)}: {text}"
    return Flag(replace(first, help=text), panel, default)


def _each(texts: Mapping[str, str], between: str = ", ") -> str:
    """Return one text for all, or each with its name before it where they differ."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return between.join(f"{name}: {text}" for name, text in texts.items())


def _shown(known: Option) -> str:
    if known.default_text:
        return known.default_text
    if known.kind is bool:
        return "yes" if known.default else "no"
    if known.of is not None:
        return ",".join(map(str, known.default or ())) or "none"
    text = f"{known.default:g}" if known.kind is float else str(known.default)
    return f"{text} {known.unit}" if known.unit else text


def with_flags(command: Callable[..., Any], flags: Iterable[Flag]) -> Callable[..., Any]:
    """Return a command that ends in `**flags` with one parameter for each flag.

    Its own parameters that stand under one of the flags' headings come before these flags.
    """
    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [
        inspect.Parameter(
            flag.option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=flag.annotation,
        )
        for flag in flags
    ]
    panels = list(dict.fromkeys([None, *map(_panel, made), *map(_panel, own)]))
    parameters = sorted(
        [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *made],
        key=lambda parameter: panels.index(_panel(parameter)),
    )

    @wraps(command)
    def with_these(**given: Any) -> Any:
        return command(**given)

    # typer reads the one or the other, depending on its release.
    with_these.__dict__["__signature__"] = signature.replace(parameters=parameters)
    with_these.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_these


def _panel(parameter: inspect.Parameter) -> str | None:
    made = getattr(parameter.annotation, "__metadata__", (None,))[0]
    return getattr(made, "rich_help_panel", None)


def read_flags(flags: Iterable[Flag], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags that were given, in the types of their options.

    Raises:
        OptionError: a list holds something else than its items.
    """
    known = {flag.option.name: flag.option for flag in flags}
    return {
        name: _items(known[name], value) if name in known and known[name].of else value
        for name, value in given.items()
        if value is not None
    }


def read_values(**given: str | None) -> dict[str, Any]:
    """Return options of reading data that a command takes by itself, as `read_flags` does."""
    return read_flags(flags_of([("Data", {"": DataOptions})]), given)


def read_names(option: str, text: str) -> list[str]:
    """Return the names between the commas, each once.

    Raises:
        OptionError: there is none.
    """
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
