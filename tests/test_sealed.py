"""JSON files with a checksum: what was written comes back, and what is not it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shoal.errors import DamagedError
from shoal.sealed import FILES, seal, unseal

VALUES: dict[str, Any] = {"steps": 3, FILES: {"weights.safetensors": "00ff"}}


def test_what_is_sealed_comes_back() -> None:
    assert unseal(json.dumps(seal(VALUES)), "a record") == VALUES


def test_what_was_changed_is_refused() -> None:
    with pytest.raises(DamagedError, match="a record is damaged or was changed"):
        unseal(json.dumps(seal(VALUES) | {"steps": 4}), "a record")


@pytest.mark.parametrize(
    "files", ["abc", 3, None, [], ["a"], {"a": 3}, {"../a": "00"}, {"/a": "00"}, {"a": {}}]
)
def test_files_are_names_with_checksums_of_files_beside_it(files: Any) -> None:
    with pytest.raises(DamagedError, match="speaks of files that lie elsewhere"):
        unseal(json.dumps(seal({FILES: files})), "a record")
