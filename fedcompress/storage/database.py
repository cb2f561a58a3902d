"""SQLite databases are opened alike by both applications: with a write-ahead log, and durable at every commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedcompress.storage.disk_space import reserve_space


class Database(sqlite3.Connection):
    """A database connection names its file in the error that it raises when the disk is full."""

    path = Path()  # of the database; set by ``open_database``

    def execute(self, *args: Any) -> sqlite3.Cursor:
        """Execute one statement, as ``sqlite3.Connection`` does.

        Raises:
            NoSpaceError: the disk is full.
        """
        with reserve_space(self.path):
            return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        """Execute one statement for each row of parameters, as ``sqlite3.Connection`` does.

        Raises:
            NoSpaceError: the disk is full.
        """
        with reserve_space(self.path):
            return super().executemany(*args)


def open_database(path: Path, schema: str, *, any_thread: bool = False) -> sqlite3.Connection:
    """Open or create a database, and create what ``schema`` lists and is not there yet.

    Args:
        path: the file; its folder must exist.
        schema: statements of the form ``CREATE ... IF NOT EXISTS``.
        any_thread: whether the caller may use it from several threads, one at a time.

    Returns:
        A connection in autocommit mode; ``transaction`` groups statements.

    Raises:
        NoSpaceError: the disk is full.
    """
    with reserve_space(path):
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=not any_thread, factory=Database)
        database.path = path
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        is_new = database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
        # A new schema is created in one transaction: a kill leaves no half of it, and no reader finds one.
        database.executescript(f"BEGIN IMMEDIATE; {schema}; COMMIT" if is_new else schema)
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Commit all statements of a block, or none of them, also where the disk is full when it ends."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite ends it by itself on some errors
            database.execute("ROLLBACK")
        raise
