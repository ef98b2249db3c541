"""Paths that users write."""

from __future__ import annotations

import os
from pathlib import Path


def user_path(text: str | Path) -> Path:
    """Return a path that a user wrote, with `~` as the home folder; one of nobody stays as it is.

    Example:
        >>> print(user_path("~no-such-user/photos"))
        ~no-such-user/photos
    """
    # pathlib raises where there is no such user.
    return Path(os.path.expanduser(text))  # noqa: PTH111
