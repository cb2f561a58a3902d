"""SQLite as both applications use it: write-ahead log, every commit on the disk before it returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedcompress.storage.disk_space import reserve_space


class Database(sqlite3.Connection):
    """A connection that names its file where the disk is full."""

    path = Path()

    def execute(self, *args: Any) -> sqlite3.Cursor:
        """As SQLite's.

        Raises:
            NoSpaceError: the disk is full.
        """
        with reserve_space(self.path):
            return super().execute(*args)

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        """As SQLite's.

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

    Raises:
        NoSpaceError: the disk is full.
    """
    with reserve_space(path):
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=not any_thread, factory=Database)
        database.path = path
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        is_new = database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
        # at once, so that nobody who reads or is killed meanwhile leaves or finds a part of it
        database.executescript(f"BEGIN IMMEDIATE; {schema}; COMMIT" if is_new else schema)
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, also where the disk is full when it ends."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite ends it by itself on some errors
            database.execute("ROLLBACK")
        raise
