"""A full disk is told apart from a damaged file, and leaves a database that goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from fedcompress.errors import NoSpaceError
from fedcompress.storage.database import open_database, transaction
from fedcompress.storage.disk_space import is_full, reserve_space

SCHEMA = "CREATE TABLE IF NOT EXISTS t (x BLOB);"


def test_a_transaction_that_does_not_fit_leaves_a_database_that_goes_on(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands for the disk."""
    database = open_database(tmp_path / "a.db", SCHEMA)
    database.execute("PRAGMA max_page_count=8")
    with pytest.raises(NoSpaceError, match=r"a\.db: no space left: free some"), transaction(database):
        database.executemany("INSERT INTO t VALUES (?)", [(bytes(4096),)] * 20)
    database.execute("PRAGMA max_page_count=1000")
    with transaction(database):
        database.execute("INSERT INTO t VALUES (?)", (b"x",))
    assert database.execute("SELECT x FROM t").fetchall() == [(b"x",)]
    database.close()


def test_a_commit_that_fails_ends_its_transaction(tmp_path: Path) -> None:
    """By a deferred constraint, which is checked by COMMIT: the connection can begin another one."""
    schema = "CREATE TABLE IF NOT EXISTS p (x PRIMARY KEY);" + (
        "CREATE TABLE IF NOT EXISTS c (x REFERENCES p DEFERRABLE INITIALLY DEFERRED);"
    )
    database = open_database(tmp_path / "a.db", schema)
    database.execute("PRAGMA foreign_keys=ON")
    with pytest.raises(sqlite3.IntegrityError), transaction(database):
        database.execute("INSERT INTO c VALUES (1)")
    with transaction(database):
        database.execute("INSERT INTO p VALUES (1)")
    assert database.execute("SELECT COUNT(*) FROM c").fetchone() == (0,)
    database.close()


def test_which_errors_are_of_a_full_disk() -> None:
    wrapped = RuntimeError("I/O error")
    wrapped.__cause__ = OSError(28, "No space left on device")
    assert is_full(wrapped)
    assert is_full(ValueError("Error while serializing: No space left on device (os error 28)"))
    assert not is_full(sqlite3.DatabaseError("file is not a database"))
    with pytest.raises(KeyError), reserve_space(Path("x")):
        raise KeyError("other errors go through")
