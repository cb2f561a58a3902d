"""Errors that mean a full disk are recognized, and raised as one that names the file and says what to do."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcompress.errors import NoSpaceError

FULL = (errno.ENOSPC, errno.EDQUOT)  # the system's errors for a full disk and a used-up quota
TEXT = "No space left on device"  # message of libraries that wrap the system's error in one of their own
NO_SHARED = sqlite3.SQLITE_IOERR_SHMSIZE  # SQLite had no room for the index of a write-ahead log, 32 KiB


def is_full(error: BaseException) -> bool:
    """Return whether an error, or the one that it was raised from, means that a disk is full.

    >>> is_full(OSError(28, "No space left on device")), is_full(OSError(2, "No such file"))
    (True, False)
    """
    if isinstance(error, NoSpaceError) or (isinstance(error, OSError) and error.errno in FULL):
        return True
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        return code == NO_SHARED or code & 0xFF == sqlite3.SQLITE_FULL
    return TEXT in str(error) or (error.__cause__ is not None and is_full(error.__cause__))


@contextmanager
def reserve_space(path: Path) -> Iterator[None]:
    """Raise errors of a block that mean a full disk as ``NoSpaceError`` of a file; other errors pass.

    Nothing is reserved in advance. Where blocks are nested, the innermost names the file.

    Args:
        path: the file that is written in the block.

    Raises:
        NoSpaceError: the disk is full.
    """
    try:
        yield
    except NoSpaceError:
        raise
    except Exception as error:
        if is_full(error):
            raise NoSpaceError(path) from error
        raise
