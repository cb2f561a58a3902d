"""A disk that is full is said as one: which file had no room, and what to do."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcompress.errors import NoSpaceError

FULL = (errno.ENOSPC, errno.EDQUOT)
TEXT = "No space left on device"  # of libraries that wrap the system's error in one of their own
NO_SHARED = sqlite3.SQLITE_IOERR_SHMSIZE  # the index of a write-ahead log, 32 KiB, could not be made


def is_full(error: BaseException) -> bool:
    """Whether an error, or the one that it was raised from, is for lack of room on a disk.

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
    """What is raised in the block for lack of room names this file.

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
