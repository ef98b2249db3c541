"""`shoal compare` on a sweep's folder: on the screen, as text for papers, or as a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shoal.cli.screen import say, show
from shoal.errors import ConfigError, OptionError, ShoalError
from shoal.files import write_file
from shoal.report.group_tables import groups_csv, groups_table, open_table
from shoal.report.latex import latex
from shoal.report.markdown import markdown
from shoal.report.sweep_page import write_sweep_page
from shoal.sweep import SweepFolder
from shoal.sweep.groups import Group, groups_of
from shoal.user_paths import user_path

_PAGE = "html"
_ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".html": _PAGE}


def refuse_measuring(options: Mapping[str, object]) -> None:
    """Raise `ConfigError` if an option, by its flag, is given of what a sweep has measured before.

    Flags that are not given are None or False.
    """
    given = [flag for flag, value in options.items() if value not in (None, False)]
    if given:
        raise ConfigError(
            "the figures of a sweep were measured when it ran, and nothing is measured now: omit "
            f"{', '.join(given)}"
        )


def show_groups(
    path: Path, form: str | None, out: Path | None, *, as_json: bool, verbose: bool
) -> None:
    """Show the groups of a sweep, or write them in the form asked for."""
    if as_json and (form is not None or out is not None):
        raise ConfigError("--json is given with --format or --out: keep one of them")
    folder = SweepFolder(user_path(path))
    if form is None and out is not None:
        form = _ENDINGS.get(out.suffix.lower())
        if form is None:
            raise ConfigError(f"'{out}' says no form: give --format {', '.join(_NAMES)}")
    if form is not None and form not in _NAMES:
        raise OptionError("format", form, f"one of {', '.join(_NAMES)}")
    title = folder.path.resolve().name
    if form == _PAGE:
        show(lines=[f"all figures on one page: '{write_sweep_page(folder, out)}'"])
        return
    groups = groups_of(folder)
    if form is not None:
        text = _FORMS[form](groups, title)
        if out is None:
            print(text, end="")
        else:
            write_file(user_path(out), text)
        return
    lines = []
    try:
        lines.append(f"all figures on one page: '{write_sweep_page(folder)}'")
    except ShoalError as error:  # the extra for pages is not installed, or the disk is full
        say(f"note: {error}")
    missing = open_table(groups)
    tables = [groups_table(groups, title), *([] if missing is None else [missing])]
    value = {"groups": [one.to_dict() for one in groups]}
    show(value, tables, lines, as_json=as_json, verbose=verbose)


_FORMS: dict[str, Callable[[Sequence[Group], str], str]] = {
    "markdown": lambda groups, title: markdown(groups_table(groups, title)),
    "csv": lambda groups, title: groups_csv(groups),
    "latex": lambda groups, title: latex(groups_table(groups, title)),
}
_NAMES = (*_FORMS, _PAGE)
