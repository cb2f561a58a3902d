"""Whether a site's state folder was set back to an older one: from a backup, or a snapshot of its disk.

What the coordinator says was merged last of this site is in its outbox, or it was told so before; else this folder is
older than that update, and nobody knows which of what it holds was merged or sent on since.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from fedcompress.database import transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS told (run TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (run, digest));"


def is_set_back(database: sqlite3.Connection, run: str, merged: Sequence[str], *, is_named: bool) -> bool:
    """Whether an update of this site was merged of which nothing is known here.

    Args:
        database: the session's, with its outbox.
        run: run name.
        merged: hex digests of what was merged last.
        is_named: they are of this site alone; if not, one of them is, if any update of it was ever merged.
    """
    query = "SELECT digest, status FROM outbox WHERE run=? UNION ALL SELECT digest, '' FROM told WHERE run=?"
    rows = database.execute(query, (run, run)).fetchall()
    is_sure = is_named or any(status == "merged" for _, status in rows)
    return bool(rows and merged) and is_sure and not {digest for digest, _ in rows} & set(merged)


def remember(database: sqlite3.Connection, run: str, merged: Sequence[str], *, is_named: bool) -> None:
    """Note what was said of this site; at the start of a state folder, of all."""
    if is_named or not database.execute("SELECT 1 FROM outbox WHERE run=?", (run,)).fetchone():
        with transaction(database):
            database.execute("DELETE FROM told WHERE run=?", (run,))
            database.executemany("INSERT OR IGNORE INTO told VALUES (?, ?)", [(run, digest) for digest in merged])
