"""Networks on the Hugging Face hub, by names such as `hf:ORG/NAME`; files go and come, no code.

The package huggingface_hub is imported when it is needed; it finds the user's token by itself.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shoal.errors import ConfigError, FileError, missing_extra, one_line

T = TypeVar("T")

PREFIX = "hf:"
_NAME = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Repository:
    """A model's repository on the hub."""

    id: str  # ORG/NAME
    revision: str | None = None  # a branch, tag or commit; None for the newest state

    @property
    def name(self) -> str:
        """The name without the organisation."""
        return self.id.partition("/")[2]

    @property
    def text(self) -> str:
        """The text that `repository` reads back as this."""
        return f"{PREFIX}{self.id}" + (f"@{self.revision}" if self.revision else "")


def is_on_hub(text: object) -> bool:
    """Whether a text names something on the hub."""
    return isinstance(text, str) and text.startswith(PREFIX)


def repository(text: str) -> Repository:
    """Read `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`; raises `ConfigError` for anything else."""
    found = _NAME.fullmatch(text.removeprefix(PREFIX)) if is_on_hub(text) else None
    if found is None:
        raise ConfigError(f"'{text}' names nothing on the Hugging Face hub: write hf:ORG/NAME")
    return Repository(found["id"], found["revision"])


def download(where: Repository, files: Sequence[str]) -> Path:
    """Return a folder with those of the named files that a repository holds.

    Raises:
        ShoalError: huggingface_hub is not installed.
        FileError: there is no such repository, or it cannot be reached.
    """
    hub = _library()

    def fetch() -> str:
        return str(
            hub.snapshot_download(where.id, revision=where.revision, allow_patterns=list(files))
        )

    return Path(_asking(fetch, f"'{where.text}' cannot be fetched"))


def upload(where: Repository, folder: Path, *, private: bool, message: str) -> str:
    """Put the files of a folder into a repository, which is made if needed; return its address.

    Raises as `download` does.
    """
    if where.revision is not None:
        raise ConfigError(f"'{where.text}' names a revision: push to {PREFIX}{where.id}")
    hub = _library()

    def send() -> str:
        api = hub.HfApi()
        url = api.create_repo(where.id, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=where.id, repo_type="model", folder_path=str(folder), commit_message=message
        )
        return str(url)

    return _asking(send, f"'{where.text}' cannot be pushed to")


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise missing_extra("huggingface_hub", "hub", "the Hugging Face hub") from error


def _asking(ask: Callable[[], T], what: str) -> T:
    """Return what the hub answers; one line for whatever goes wrong."""
    try:
        return ask()
    except Exception as error:  # of the HTTP library, the hub's own, the disk: no common class
        reason = one_line(str(error), 160) or type(error).__name__
        raise FileError(
            f"{what} ({reason}): check the name, the network, and `hf auth login`"
        ) from error
