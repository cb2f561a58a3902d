"""SQLite as both applications use it: write-ahead log, every commit on the disk before it returns."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def open_database(path: Path, schema: str, *, any_thread: bool = False) -> sqlite3.Connection:
    """Open or create a database, and create what ``schema`` lists and is not there yet.

    Args:
        path: the file; its folder must exist.
        schema: statements of the form ``CREATE TABLE IF NOT EXISTS``.
        any_thread: whether the caller may use it from several threads, one at a time.
    """
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=not any_thread)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.executescript(schema)
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
