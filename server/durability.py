"""What is done about a ledger that a disk has damaged: its copy, and the last round that can be read."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from fedcompress.errors import StateError

LEDGER, COPY = "ledger.db", "ledger.copy.db"


def healthy(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a database; True if there is none."""
    if not path.exists():
        return True
    try:
        database = sqlite3.connect(path)
        try:
            return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        finally:
            database.close()
    except sqlite3.DatabaseError:
        return False


def recover_file(folder: Path) -> str:
    """Put the copy in the place of a damaged ledger, which is kept beside it; what was done, empty if nothing.

    Raises:
        StateError: it is damaged, and there is no good copy.
    """
    ledger, copy = folder / LEDGER, folder / COPY
    if healthy(ledger):
        return ""
    if not copy.exists() or not healthy(copy):
        raise StateError(
            f"ledger: {ledger}: is damaged, and so is its copy {copy.name}: restore the folder from a backup"
        )
    aside = folder / f"ledger.damaged-{int(time.time())}.db"
    for suffix in ("", "-wal", "-shm"):
        part = folder / f"{LEDGER}{suffix}"
        if part.exists():
            os.replace(part, f"{aside}{suffix}")
    copy_database(copy, ledger)
    return f"ledger: {ledger}: is damaged, and kept as {aside.name}: its copy made after a round takes its place"


def copy_database(source: Path | sqlite3.Connection, target: Path) -> None:
    """A consistent copy of a database that may be in use; whole or not at all."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    opened = sqlite3.connect(source) if isinstance(source, Path) else source
    written = sqlite3.connect(part)
    try:
        opened.backup(written)
    finally:
        written.close()
        if isinstance(source, Path):
            opened.close()
    handle = os.open(part, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(part, target)
