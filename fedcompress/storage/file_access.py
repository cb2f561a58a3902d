"""What is said of a file that cannot be opened now is nothing of its bytes: nothing is given up or repaired for it."""

from __future__ import annotations

import errno
import sqlite3

# of this process, of the machine, of rights, of a mount
PASSING = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ENOTCONN,
}
SQLITE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
}


def is_passing(error: BaseException) -> bool:
    """Whether an error of the system, or of SQLite, says nothing of the bytes of the file that was to be read.

    >>> is_passing(OSError(errno.EMFILE, "Too many open files")), is_passing(OSError(errno.EIO, "Input/output error"))
    (True, False)
    """
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in SQLITE
    return isinstance(error, OSError) and error.errno in PASSING
