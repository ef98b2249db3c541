"""A stand-in of the Hugging Face hub, which keeps files in its layout."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path


class Hub:
    """Keeps repositories in a folder, a snapshot for each push; may stand for the hub's client."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.private: dict[str, bool] = {}
        self.fetched: list[str] = []

    def snapshots(self, name: str) -> Path:
        return self.folder / f"models--{name.replace('/', '--')}" / "snapshots"

    def create_repo(self, name: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        assert repo_type == "model"
        assert exist_ok
        self.private.setdefault(name, private)
        return f"https://huggingface.co/{name}"

    def upload_folder(
        self, *, repo_id: str, repo_type: str, folder_path: str, commit_message: str
    ) -> None:
        assert repo_id in self.private
        number = len(list(self.snapshots(repo_id).glob("*")))
        shutil.copytree(folder_path, self.snapshots(repo_id) / f"{number:040x}")

    def snapshot_download(
        self, name: str, *, revision: str | None, allow_patterns: Sequence[str]
    ) -> str:
        found = sorted(self.snapshots(name).glob("*"))
        if not found:
            raise OSError("404 Client Error\n\nRepository Not Found")
        whole = found[-1] if revision is None else self.snapshots(name) / revision
        fetched = Path(tempfile.mkdtemp(dir=self.folder))
        for file in whole.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(file, fetched / file.name)
                self.fetched.append(file.name)
        return str(fetched)
