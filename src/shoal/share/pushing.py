"""Push a result to the Hugging Face hub: the network, a file for ONNX Runtime, page and card."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoal.errors import ShoalError
from shoal.hub import is_on_hub, repository, upload
from shoal.merge.loading import is_run, load
from shoal.network import Network
from shoal.network.saving import write_network
from shoal.report import read_run, write_page
from shoal.runtimes import export
from shoal.search.run_files import read_config, readable_twin
from shoal.share.card import card_of
from shoal.user_paths import user_path


@dataclass(frozen=True)
class Pushed:
    """What was pushed.

    Attributes:
        url: the address of the repository.
        files: the names of its files.
        notes: what is missing, and why; a line each.
    """

    url: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"url": self.url, "files": list(self.files), "notes": list(self.notes)}


def push(
    run: str | Path,
    to: str,
    *,
    license: str | None = None,
    private: bool = False,
) -> Pushed:
    """Push the result of a run, merged, to the Hugging Face hub, with a card that explains it.

    The repository gets `network.json` and `model.safetensors`, which `shoal.load(to)` reads;
    `model.onnx`, if the extra "onnx" is installed; `report.html` of a run, if the extra "report"
    is; and `README.md`, the card, written from what the network says of itself. It is made if
    needed; files of an earlier push are replaced. Of the folders of this machine only the last
    names are told.

    Args:
        run: a finished run's folder, or one that `shoal.save` wrote.
        to: "hf:ORG/NAME".
        license: of the network, as the hub spells it ("mit", "apache-2.0"); the choice is yours,
            and that of who made the network it comes from and the data. None gives none.
        private: whether a repository that is made is for you alone.

    Raises:
        ShoalError: huggingface_hub is not installed (the extra "hub"), the folder holds no network,
            or the hub refuses.

    Example:
        >>> import shoal
        >>> try:
        ...     shoal.push("run", "resnet18-photos")
        ... except shoal.ShoalError as error:
        ...     print(error)
        'resnet18-photos' names nothing on the Hugging Face hub: write hf:ORG/NAME
    """
    where, source = repository(to), user_path(run)
    network = load(source)
    network.plan.base = _public(network.plan.base)
    notes = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / where.name
        folder.mkdir()
        write_network(network, folder)
        for make in (_onnx(network, folder), _page(source, folder)):
            try:
                make()
            except ShoalError as error:
                notes.append(str(error).replace(f"{folder}/", ""))
        files = sorted([*(path.name for path in folder.iterdir()), "README.md"])
        card = card_of(network, where, license, files)
        (folder / "README.md").write_text(card, encoding="utf-8")
        url = upload(where, folder, private=private, message=f"Push {where.name} by shoal")
    return Pushed(url, tuple(files), tuple(notes))


def _onnx(network: Network, folder: Path) -> Callable[[], object]:
    return lambda: export(network, folder / "model.onnx")


def _page(run: Path, folder: Path) -> Callable[[], object]:
    def write() -> None:
        if is_run(run):  # the page names the run's folder
            record = read_run(run)
            write_page(
                replace(record, folder=Path(run.resolve().name)),
                folder / "report.html",
                config={name: _public(value) for name, value in read_config(run).items()},
                twin=readable_twin(record)[0],
            )

    return write


def _public(value: Any) -> Any:
    """Return an option, or where a model came from, without the folders of this machine."""
    if isinstance(value, list):
        return [_public(one) for one in value]
    if not isinstance(value, str) or is_on_hub(value) or ":hf-hub:" in value:
        return value
    return re.sub(r"[^=&:?]*[/\\](?=[^/\\=&:?])", "", value).rstrip("/\\")
