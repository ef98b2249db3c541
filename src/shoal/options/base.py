"""What an option is: a dataclass field with its default, help, unit and check beside it.

Flags, the YAML schema, a run's identity, validation and the tables of the docs are derived from
these classes.
"""

from __future__ import annotations

import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Self

from shoal.errors import ConfigError, OptionError, unknown_name

_META = "shoal"


@dataclass(frozen=True)
class Check:
    """What a value must satisfy."""

    text: str  # as a message says it, such as "0 or more"
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()  # the values that are allowed, where there are few


def at_least(low: float) -> Check:
    """Return the check that a number is `low` or more."""
    return Check(f"{low:g} or more", lambda value: value >= low)


def above(low: float) -> Check:
    """Return the check that a number is above `low`."""
    return Check(f"above {low:g}", lambda value: value > low)


def between(low: float, high: float, *, ends: str = "[]") -> Check:
    """Return the check that a number is in an interval; `ends` as in "[0, 1)"."""
    above_low = operator.ge if ends[0] == "[" else operator.gt
    below_high = operator.le if ends[1] == "]" else operator.lt
    first = "from" if ends[0] == "[" else "above"
    last = "to" if ends[1] == "]" else "to below" if ends[0] == "[" else "and below"
    text = f"{first} {low:g} {last} {high:g}"
    return Check(text, lambda value: above_low(value, low) and below_high(value, high))


def one_of(*choices: str) -> Check:
    """Return the check that a value is one of a few words."""
    return Check(f"one of {', '.join(choices)}", lambda value: value in choices, choices)


@dataclass(frozen=True)
class Option:
    """One option, as whoever derives something from it sees it."""

    name: str
    kind: type  # of its value, without the None that an optional one also takes
    of: type | None  # the type of a tuple's items; None for a single value
    lone: bool  # whether a single item is a value by itself, and not a tuple of one
    optional: bool  # whether None is a value
    default: Any
    help: str  # what it means and when to change it, in sentences
    unit: str  # of the number, such as "points" or "ms"; empty if it has none
    check: Check | None  # what a value (each item of a tuple) must satisfy
    decides: bool  # whether it belongs to a run's identity: another value gives another result
    default_text: str  # how the help shows the default, where the value itself says too little
    flag: bool  # whether the command line has it
    common: bool  # whether most people need it: the short help shows it
    late: bool  # whether runs of earlier versions do not say it: the default is no identity's

    def checked(self, value: Any) -> Any:
        """Return a value in the option's type; raise `OptionError` where it does not fit."""
        if value is None and self.optional:
            return None
        if self.of is None:
            return self._single(value, self.kind)
        if self.lone:
            return self._one_or_several(value)
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise OptionError(self.name, value, f"a list of {_PLURALS[self.of]}")
        return tuple(self._single(item, self.of) for item in value)

    def text(self, value: Any) -> str:
        """Return a value as people read it, with its unit."""
        if value == self.default and self.default_text:
            return self.default_text
        if isinstance(value, bool):
            return "yes" if value else "no"
        items = value if isinstance(value, tuple) else () if value is None else (value,)
        text = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)
        return f"{text} {self.unit}".strip() if items else "none"

    def _one_or_several(self, value: Any) -> Any:
        """Return an item, or several as a tuple, each once; a text may hold several with commas."""
        assert self.of is not None  # only lists come here
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
            if self.of is not str:
                several = f"{_WORDS[self.of]}, or several as a list, such as [1, 64]"
                raise OptionError(self.name, ",".join(value), several)
        given = value if isinstance(value, Iterable) else [value]
        items = tuple(dict.fromkeys(self._single(item, self.of) for item in given))
        if not items:
            raise OptionError(self.name, value, f"{_WORDS[self.of]}, or several")
        return items if len(items) > 1 else items[0]

    def _single(self, value: Any, kind: type) -> Any:
        value = _plain(value, kind)
        if isinstance(value, bool) and self.check and {"on", "off"} <= set(self.check.choices):
            value = "on" if value else "off"  # which YAML takes for true and false
        fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        if fits and kind is float:
            fits = math.isfinite(value)
        if fits and (self.check is None or self.check.holds(value)):
            return value if type(value) is kind else kind(value)  # NumPy's texts are texts
        if self.check is not None and self.check.choices:
            raise OptionError(self.name, value, self.check.text)
        unit = f" of {self.unit}" if self.unit else ""
        limits = "" if self.check is None else f", {self.check.text}"
        raise OptionError(self.name, value, f"{_WORDS[kind]}{unit}{limits}")


def _plain(value: Any, kind: type) -> Any:
    """Return a number of any library, such as NumPy, as Python's own, if it is of the kind."""
    if kind is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:  # a whole number that no float holds
            return value
    return value


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_PLURALS = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    check: Check | None = None,
    decides: bool = True,
    default_text: str = "",
    flag: bool = True,
    common: bool = False,
    late: bool = False,
) -> Any:
    """Return a dataclass field that carries all there is to say of an option; see `Option`.

    Example:
        >>> import shoal
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Folding(shoal.Options):
        ...     threshold: float = shoal.option(0.9, "Fold slopes above this.")
        >>> Folding(threshold=0.5).to_dict()
        {'threshold': 0.5}
    """
    about = {"help": help, "unit": unit, "check": check, "decides": decides}
    about |= {"default_text": default_text, "flag": flag, "common": common, "late": late}
    return field(default=default, metadata={_META: about})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all classes of options; subclasses are frozen dataclasses with keywords only.

    Every field made by `option` is checked when an instance is made. A subclass that has to check
    several together extends `__post_init__`.

    Example:
        >>> import shoal
        >>> from dataclasses import dataclass
        >>> from shoal.options import between
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Folding(shoal.Options):
        ...     threshold: float = shoal.option(0.9, "Fold slopes above this.", check=between(0, 1))
        >>> Folding(threshold=2.0)
        Traceback (most recent call last):
        shoal.errors.OptionError: threshold is 2.0: give a number, from 0 to 1
    """

    def __post_init__(self) -> None:
        """Bring every value into its type; raise `OptionError` for the first that is wrong."""
        for known in options_of(self.__class__):
            object.__setattr__(self, known.name, known.checked(getattr(self, known.name)))

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values; `from_dict` is the way back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the options of `values`; what is left out has its default.

        Raises:
            NameNotFoundError: there is no such option; names the nearest.
            OptionError: a value is of another type or out of its range.
        """
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown_name("option", str(name), known)
        return cls(**values)

    def identity(self) -> dict[str, Any]:
        """Return the values that decide a result, as JSON values."""
        known = {one.name: one for one in options_of(self.__class__) if one.decides}
        return {
            name: value
            for name, value in self.to_dict().items()
            if name in known and not (known[name].late and value == known[name].default)
        }


def options_of(cls: type[Options]) -> tuple[Option, ...]:
    """Return the options of a class, in the order of its fields."""
    if cls not in _KNOWN:
        hints = typing.get_type_hints(cls)
        _KNOWN[cls] = tuple(_option(f, hints[f.name]) for f in fields(cls) if _META in f.metadata)
    return _KNOWN[cls]


_KNOWN: dict[type, tuple[Option, ...]] = {}


def assert_takes(who: str, cls: type[Options], names: Iterable[str]) -> None:
    """Raise `ConfigError` if `who`, whose options `cls` holds, has none of one of these names."""
    known = [one.name for one in options_of(cls)]
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{who} does not take these options: {unknown_name('option', name, known)}"
            )


def _option(f: Field[Any], hint: Any) -> Option:
    optional = lone = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        optional, lone = type(None) in typing.get_args(hint), len(kinds) > 1
        hint = kinds[-1]  # of an item or a tuple of them, the tuple
    of = None
    if typing.get_origin(hint) is tuple:
        of, hint = typing.get_args(hint)[0], tuple
    if f.default is MISSING or (of or hint) not in _WORDS:
        raise ConfigError(f"the option {f.name} needs a default and a plain type")
    return Option(f.name, hint, of, lone, optional, f.default, **f.metadata[_META])


def share_out(values: Mapping[str, Any], *classes: type[Options]) -> tuple[dict[str, Any], ...]:
    """Return which of some flat values belong to which class; one may belong to several."""
    names = [{f.name for f in fields(cls)} for cls in classes]
    for name in values:
        if not any(name in of_class for of_class in names):
            raise unknown_name("option", str(name), sorted(set().union(*names)))
    return tuple({k: v for k, v in values.items() if k in of_class} for of_class in names)
