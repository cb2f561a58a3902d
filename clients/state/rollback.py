"""Finds out that a site's state folder, or the coordinator, was set back to an older state, as from a backup.

A task that is older than another is a copy that somebody kept, unless the coordinator says that it was restored since.
The update of this site that the coordinator says was merged last is in the outbox, or the coordinator has named it
before. Else this folder is older than that update, and nobody knows which of what it holds was merged or sent on since.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from fedcompress.errors import IdentityError
from fedcompress.storage.database import transaction

SCHEMA = """
CREATE TABLE IF NOT EXISTS told (run TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (run, digest));
CREATE TABLE IF NOT EXISTS newest (run TEXT PRIMARY KEY, round INTEGER NOT NULL, version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS life (run TEXT PRIMARY KEY, life INTEGER NOT NULL);
"""


def is_rolled_back(database: sqlite3.Connection, run: str, merged: Sequence[str], *, is_named: bool) -> bool:
    """Return whether an update of this site was merged of which nothing is known here.

    Args:
        database: the site's, with its outbox.
        run: run name.
        merged: hex digests of what was merged last.
        is_named: the task names this site, so that ``merged`` has its updates alone; if not, one of them is this
            site's, if any update of it was ever merged.

    Returns:
        True if this folder was set back for certain.
    """
    query = "SELECT digest, status FROM outbox WHERE run=? UNION ALL SELECT digest, '' FROM told WHERE run=?"
    rows = database.execute(query, (run, run)).fetchall()
    is_sure = is_named or any(status == "merged" for _, status in rows)
    return bool(rows and merged) and is_sure and not {digest for digest, _ in rows} & set(merged)


def record_merged(database: sqlite3.Connection, run: str, merged: Sequence[str], *, is_named: bool) -> None:
    """Note which update of this site was merged last.

    Args:
        database: the site's, with its outbox.
        run: run name.
        merged: hex digests of what was merged last.
        is_named: the task names this site; if not, ``merged`` is noted only where this site has sent nothing yet.
    """
    if is_named or not database.execute("SELECT 1 FROM outbox WHERE run=?", (run,)).fetchone():
        with transaction(database):
            database.execute("DELETE FROM told WHERE run=?", (run,))
            database.executemany("INSERT OR IGNORE INTO told VALUES (?, ?)", [(run, digest) for digest in merged])


def check_not_replayed(database: sqlite3.Connection, run: str, round_: int, version: int, life: int) -> None:
    """Note the newest task, and refuse an older one.

    Args:
        database: the site's.
        run: run name.
        round_: the round asked for.
        version: of the published state that it starts from.
        life: when the coordinator was restored, seconds since 1970; a later one begins anew.

    Raises:
        IdentityError: ``replay``: a later life, round or version was asked for before.
    """
    with transaction(database):
        (known,) = database.execute("SELECT life FROM life WHERE run=?", (run,)).fetchone() or (0,)
        newest = database.execute("SELECT round, version FROM newest WHERE run=?", (run,)).fetchone() or (0, 0)
        if life < known or (life == known and (round_ < newest[0] or version < newest[1])):
            raise IdentityError(
                "replay",
                f"task: life {life}, round {round_}, version {version} of run {run}: life {known}, round {newest[0]}, "
                f"version {newest[1]} was asked for before: a coordinator from a backup needs the note `restored`, "
                "as docs/operations.md says",
            )
        database.execute("INSERT OR REPLACE INTO newest VALUES (?, ?, ?)", (run, round_, version))
        database.execute("INSERT OR REPLACE INTO life VALUES (?, ?)", (run, life))


def reopen_undone(database: sqlite3.Connection, run: str, merged: Sequence[str]) -> None:
    """Open again what was sent after this site's last merged update: the coordinator has undone that it was merged.

    Args:
        database: the site's, with its outbox.
        run: run name.
        merged: hex digests of what was merged last; nothing is opened where none of them is in the outbox.
    """
    places = ", ".join("?" * len(merged))
    query = f"SELECT MAX(round) FROM outbox WHERE run=? AND digest IN ({places})"
    (last,) = database.execute(query, (run, *merged)).fetchone()
    if last is not None:
        database.execute("UPDATE outbox SET status='open' WHERE run=? AND status='merged' AND round>?", (run, last))
