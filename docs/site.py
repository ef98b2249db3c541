"""What the site takes from outside docs/: pages of the project, and the examples.

MkDocs calls these functions (`hooks` in mkdocs.yml). Pages link to each other as files do, so that
they can be read in the repository too; here the links become those of the site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parents[1]
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def on_files(files: Files, *, config: Any) -> Files:
    """Add them to what docs/ holds."""
    for path in [*map(TOP.joinpath, PAGES), *sorted((TOP / "examples").glob("*.py"))]:
        name = path.relative_to(TOP).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links between folders of the repository into links within the site."""
    outside = page.file.src_uri in PAGES
    return re.sub(r"\]\(docs/" if outside else r"\]\(\.\./", "](", markdown)
