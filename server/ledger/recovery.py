"""A ledger that a disk has damaged is replaced by its copies, which are made after every round."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcompress.errors import AccessError, ConfigError, NoSpaceError, StateError
from fedcompress.storage.disk_space import is_full, reserve_space
from fedcompress.storage.file_access import is_passing
from server.ledger.schema import SCHEMA, upgrade
from server.state_dir import RESTORED

LEDGER = "ledger.db"
LAST = "ledger.last.db"  # copy of what a run cannot go on without, made after each round
WHOLE = "ledger.whole.db"  # copy of all tables, made the more seldom the larger the ledger is
NEEDED = ("run", "version", "round", "merged", "site")  # tables without which a run cannot go on
OFTEN = 4 << 20  # bytes of a ledger up to which it is copied as a whole after each round


def restored_at(folder: Path) -> int:
    """Return when the state directory was last restored, as whoever did it has noted.

    Args:
        folder: state directory.

    Returns:
        Seconds since 1970; 0 if it never was.

    Raises:
        ConfigError: the note is no number.
    """
    note = folder / RESTORED
    try:
        return int(note.read_text())
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise ConfigError(RESTORED, note, "must hold the seconds since 1970: date +%s") from error


def note_restored(folder: Path) -> None:
    """Record in the state directory that what is committed may be older than what sites were asked for."""
    part = folder / f"{RESTORED}.part"
    with reserve_space(folder / RESTORED):
        part.write_text(f"{max(int(time.time()), restored_at(folder) + 1)}\n")
        part.replace(folder / RESTORED)


def is_healthy(path: Path) -> bool:
    """Return whether SQLite finds nothing wrong with a file, and a ledger in it: an empty file is none.

    Raises:
        NoSpaceError: there is no room for what SQLite needs to read it; that says nothing about the file.
        AccessError: it cannot be opened now.
    """
    if not path.exists():
        return False
    try:
        with _open(path) as database:
            is_sound = database.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            return is_sound and bool(database.execute("SELECT 1 FROM sqlite_master WHERE name='run'").fetchone())
    except sqlite3.DatabaseError as error:
        if is_full(error):
            raise NoSpaceError(path) from error
        if is_passing(error):
            raise AccessError(path, error) from error
        return False


def _is_empty(path: Path) -> bool:
    """Return whether a ledger is not there, or was never written to: its maker was killed before the tables."""
    if not path.exists() or not path.stat().st_size:
        return True
    try:
        with _open(path) as database:
            return database.execute("SELECT 1 FROM sqlite_master").fetchone() is None
    except sqlite3.DatabaseError:
        return False


def recover_file(folder: Path) -> str:
    """Put copies in the place of a ledger that is damaged or lost.

    Args:
        folder: state directory.

    Returns:
        What was done, for people; empty if nothing was.

    Raises:
        StateError: it is damaged, and there is no good copy.
        NoSpaceError: the disk is full; nothing was replaced.
    """
    ledger, whole, last = (folder / name for name in (LEDGER, WHOLE, LAST))
    if is_healthy(ledger):
        return ""
    if not last.exists() and _is_empty(ledger):
        return ""  # the first start
    if not is_healthy(last):
        raise StateError(f"ledger: {ledger}: is damaged, and so is its copy {last.name}: restore it from a backup")
    note_restored(folder)
    aside = folder / f"ledger.damaged-{int(time.time())}.db"
    for suffix in ("", "-wal", "-shm"):
        part = folder / f"{LEDGER}{suffix}"
        if part.exists():
            os.replace(part, f"{aside}{suffix}")
    remark = "all but what was sent since the last whole copy is there"
    if is_healthy(whole):
        _replace(whole, ledger, lambda database: _copy_needed(database, last))
    else:
        _replace(last, ledger)
        remark = "the counts of bytes of its rounds are lost"
    damage = f"ledger: {ledger}: is damaged, and kept as {aside.name}"
    return f"{damage}: its copies made after a round take its place: {remark}"


def copy_ledger(database: sqlite3.Connection, folder: Path, rounds: int) -> None:
    """Copy the ledger after a round: what a run cannot go on without, and now and then all of it.

    Args:
        database: the ledger.
        folder: state directory, where the copies lie.
        rounds: committed rounds; the whole ledger is copied the more seldom the larger it is.

    Raises:
        NoSpaceError: the disk is full; the copies are as they were.
    """
    size = database.execute("PRAGMA page_count").fetchone()[0] * database.execute("PRAGMA page_size").fetchone()[0]
    if rounds % (1 + size // OFTEN) == 0:
        _replace(database, folder / WHOLE)
    with _part_of(folder / LAST) as part, _open(part) as target:
        target.execute("PRAGMA synchronous=OFF")  # it is synchronized once, before it has its name
        _copy_needed(target, folder / LEDGER)


def _copy_needed(database: sqlite3.Connection, source: Path) -> None:
    """Replace what a database has of the tables without which a run cannot go on by the rows of another ledger.

    SQLite moves the rows by itself, so that they are never all in memory. Columns are matched by name, since a ledger
    that is older than a column has it last.
    """
    database.executescript(SCHEMA)
    upgrade(database)
    database.execute("ATTACH ? AS source", (f"{source.absolute().as_uri()}?mode=ro",))
    with database:
        for table in NEEDED:
            known = _columns(database, "main", table)
            names = ", ".join(name for name in _columns(database, "source", table) if name in known)
            database.execute(f"DELETE FROM main.{table}")
            database.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM source.{table}")


def _columns(database: sqlite3.Connection, schema: str, table: str) -> list[str]:
    return [row[1] for row in database.execute(f"PRAGMA {schema}.table_info({table})")]


def _replace(
    source: Path | sqlite3.Connection,
    target: Path,
    change: Callable[[sqlite3.Connection], None] = lambda database: None,
) -> None:
    """Write a consistent copy of a database that may be in use, whole or not at all, after a change to the copy."""
    with _part_of(target) as part, _open(part) as written:
        if isinstance(source, Path):
            with _open(source) as opened:
                opened.backup(written)
        else:
            source.backup(written)
        change(written)


@contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """Yield a file to write to, which takes the target's place if the block ends well, and is deleted if not."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    try:
        with reserve_space(target):
            yield part
            handle = os.open(part, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(part, target)
    except BaseException:
        for suffix in ("", "-journal", "-wal", "-shm"):
            part.with_name(f"{part.name}{suffix}").unlink(missing_ok=True)
        raise


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path.absolute().as_uri(), uri=True)
    try:
        yield database
    finally:
        database.close()
