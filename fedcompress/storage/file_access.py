"""Errors of access say that a file cannot be opened now; they say nothing of its bytes.

Code that would give up or repair a damaged file asks here first, and does neither for such an error.
"""

from __future__ import annotations

import errno
import sqlite3

# The system's errors of access, by cause.
PASSING = {
    errno.EMFILE,  # this process has too many open files
    errno.ENFILE,  # the machine has
    errno.ENOMEM,
    errno.EACCES,  # rights
    errno.EPERM,
    errno.ESTALE,  # a mount
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.ENOTCONN,
}
# The same as SQLite reports it: primary result codes.
SQLITE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
}


def is_passing(error: BaseException) -> bool:
    """Return whether an error of the system or of SQLite says nothing of the bytes of the file that was to be read.

    >>> is_passing(OSError(errno.EMFILE, "Too many open files")), is_passing(OSError(errno.EIO, "Input/output error"))
    (True, False)
    """
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in SQLITE
    return isinstance(error, OSError) and error.errno in PASSING
