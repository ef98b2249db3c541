"""Write files and folders so that a crash leaves the old or the new ones, never half of each."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from shoal.errors import BusyError, FileError, ShoalError

try:
    import fcntl
except ImportError:  # no file locks on this system
    fcntl = None  # type: ignore[assignment]

# Of Linux's renameat2, which Python does not offer.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_TRIES = 10  # to lock a folder, in half a second


def write_file(path: Path, write: Callable[[Path], None] | bytes | str) -> None:
    """Write a file, or have it written, under a temporary name, sync it, and rename it to `path`.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with readable_errors(path):
        try:
            mode = _usual_mode(temporary)
            if callable(write):
                write(temporary)
            else:
                temporary.write_bytes(write.encode() if isinstance(write, str) else write)
            temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def replace_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a temporary folder and rename it to `path`, replacing what is there.

    Raises:
        FileError: the disk is full, or the parent cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    with readable_errors(path):
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            mode = _usual_mode(temporary / ".mode")
            fill(temporary)
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(mode)
                    _sync(file)
            _sync_folder(temporary)
            if path.exists() and not _exchange(temporary, path):
                path.replace(old)
            if not path.exists():
                temporary.replace(path)
        except BaseException:
            if old.exists() and not path.exists():
                old.replace(path)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)
        for former in (old, temporary):
            shutil.rmtree(former, ignore_errors=True)


def locked(folder: Path) -> IO[str] | None:
    """Lock a folder for this process until what is returned is closed; None where no locks are.

    Raises:
        BusyError: another process has locked it.
    """
    if fcntl is None:
        return None
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)  # a link may lead anywhere
    with readable_errors(folder / ".lock"):
        held = os.fdopen(os.open(folder / ".lock", flags, 0o666), "r+")
    for _ in range(_TRIES):  # `is_locked` holds it for a moment
        with contextlib.suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return held
        time.sleep(0.05)
    held.close()
    raise BusyError(
        f"another process is at work in '{folder}': wait for it, or choose another folder"
    )


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked a folder; true where that cannot be told."""
    if fcntl is None:
        return True
    try:
        with (folder / ".lock").open(encoding="utf-8") as held:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _usual_mode(path: Path) -> int:
    """Return the mode of a new file, by making one; some libraries give theirs to its owner alone.

    The file is removed again.
    """
    path.touch()
    mode = path.stat().st_mode
    path.unlink()
    return mode


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; return False where the system has no call for it."""
    linux = sys.platform.startswith("linux")
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if linux else None
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    done: int = rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    return done == 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    """Make renames inside a folder last; does nothing where the system has no such call."""
    with contextlib.suppress(OSError):
        _sync(path)


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors of writing below `path` into one line that says what to do."""
    try:
        yield
    except ShoalError:
        raise
    except Exception as error:
        if _is_disk_full(error):
            raise FileError(
                f"the disk is full, '{path}' could not be written: free some space and run the "
                "same command again; finished steps are kept"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise FileError(
            f"cannot write '{path}': {error.strerror or error}: choose another folder, or make "
            "this one writable"
        ) from error


def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors wraps the system's error in its own, and all that torch's writer may say is that
    # it did not get as far in the file as it wanted.
    signs = ("No space left", "os error 28", "inline_container.cc")
    return any(sign in str(error) for sign in signs)
