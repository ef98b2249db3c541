"""Archives that data sets come in: where to get them, and which folder they unpack to.

Nothing is downloaded unasked. What is missing is told in one line: what was found instead, where
the archive is, and where its folder belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from shoal.compat import import_torchvision
from shoal.data.dataset import Reading
from shoal.data.layout import Files
from shoal.errors import ConfigError, DataError, one_line
from shoal.options import Options, assert_takes
from shoal.targets import parse_target
from shoal.user_paths import user_path

AnyOptions = TypeVar("AnyOptions", bound=Options)


@dataclass(frozen=True)
class Archive:
    """A data set as its authors give it away.

    Attributes:
        name: of the data set on the command line.
        folder: what the archive unpacks to.
        needs: paths in the folder that are there if it is complete.
        source: where to get it, as a message says it.
        others: other layouts of these data, by a path that shows them, and what to do about them.
        reader: torchvision's class that can download it; empty if there is none.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    source: str
    others: Mapping[str, str] = field(default_factory=dict)
    reader: str = ""

    def asked(self, root: str, options: type[AnyOptions]) -> tuple[str, AnyOptions]:
        """Split `ROOT?key=value&…` into the folder and the data set's own options.

        Raises:
            ConfigError: no folder is given, or there is no such option.
        """
        folder, values = parse_target(root)
        if not folder:
            raise ConfigError(
                f"the data set '{self.name}' needs its folder: write '{self.name}:FOLDER'"
            )
        assert_takes(f"the data set '{self.name}'", options, values)
        return folder, options.from_dict(values)

    def find(self, root: str, options: Reading) -> Path:
        """Return the data set's folder: `root` itself, or the one in it that was unpacked.

        Raises:
            DataError: it is not there, or not complete.
        """
        given = user_path(root)
        found = self._found(given)
        if found is None and options.download:
            self._download(given)
            found = self._found(given)
        if found is None:
            raise DataError(self._missing(given))
        return found

    def _places(self, given: Path) -> list[Path]:
        """Return where the folder may be, the likeliest first; `dtd/dtd` may be given in part."""
        parts = Path(self.folder).parts
        return [given, *(given.joinpath(*parts[start:]) for start in range(len(parts)))]

    def _found(self, given: Path) -> Path | None:
        places = self._places(given)
        complete = (p for p in places if all(_is_there(p / name) for name in self.needs))
        return next(complete, None)

    def _missing(self, given: Path) -> str:
        for where in self._places(given):
            for path, advice in self.others.items():
                if (where / path).exists():
                    return f"'{where}' has '{path}': {advice}"
        begun = (p for p in self._places(given) if any((p / name).exists() for name in self.needs))
        partial = next(begun, None)
        if partial is None:
            state = f"'{given}' has no folder '{self.folder}'"
            state = state if given.is_dir() else f"the folder '{given}' does not exist"
            place = given / self.folder
        else:
            place = partial
            lacking = next(name for name in self.needs if not _is_there(place / name))
            kind = "" if Path(lacking).suffix else "folder "
            state = f"'{place}' has no {kind}'{lacking}'"
        fetch = ", or add download=True" if self.reader else ""
        return f"{state}: get {self.source} and unpack it, so that '{place}' is there{fetch}"

    def _download(self, given: Path) -> None:
        if not self.reader:
            raise DataError(
                f"{self.name} cannot be downloaded by shoal: get {self.source} and unpack it in "
                f"'{given}'"
            )
        reader: Any = getattr(import_torchvision().datasets, self.reader)
        try:
            reader(given, download=True)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self.name} cannot be downloaded to '{given}' ({one_line(str(error))}): check "
                f"the network, or get {self.source} and unpack it there by hand"
            ) from error


def _is_there(path: Path) -> bool:
    return path.is_file() if path.suffix else path.is_dir()


def lines_of(path: Path) -> list[str]:
    """Return the lines of an archive's text file that are not empty.

    Raises:
        DataError: it cannot be read, or is empty.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' cannot be read: unpack the archive again") from error
    if not lines:
        raise DataError(f"'{path}' is empty: unpack the archive again")
    return lines


def check_apart(parts: Mapping[str, Files]) -> None:
    """Raise `DataError` where an image is listed twice, in one part or in two."""
    seen: dict[Path, str] = {}
    for part, files in parts.items():
        for path in files.paths:
            if path in seen:
                both = part if seen[path] == part else f"{seen[path]} and {part}"
                raise DataError(f"'{path}' is listed twice, for {both}: unpack the archive again")
            seen[path] = part
