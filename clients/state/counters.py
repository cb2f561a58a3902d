"""Counts for people what a site's worker does: bytes by run, and the newest failure. The counts survive restarts.

A full disk must not end a round: what cannot be counted then is left out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from fedcompress.errors import NoSpaceError
from fedcompress.storage.database import open_database, transaction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS traffic (
  run TEXT PRIMARY KEY, received INTEGER NOT NULL, sent INTEGER NOT NULL,
  requests INTEGER NOT NULL, replies INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS failure (
  id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
  code TEXT NOT NULL, message TEXT NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class RunTraffic:
    """Counts the payload of one run.

    Args:
        run: name of the run.
        received: bytes of downlinks.
        sent: bytes of replies.
        requests: number of downlinks.
        replies: number of replies.
    """

    run: str
    received: int
    sent: int
    requests: int
    replies: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Says which round failed last, and why.

    Args:
        at: when, seconds since 1970.
        run: name of the run.
        round: number of the round.
        code: of the failure.
        message: what to read.
    """

    at: float
    run: str
    round: int
    code: str
    message: str


class Counters:
    """Keeps tables in the site's database, on a connection of their own, so that rounds do not wait for them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = open_database(folder / "session.db", _SCHEMA, any_thread=True)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()

    def received(self, run: str, size: int) -> None:
        """Count a downlink of ``size`` bytes."""
        self._count(run, size, 0, 1, 0)

    def sent(self, run: str, size: int) -> None:
        """Count a reply of ``size`` bytes."""
        self._count(run, 0, size, 0, 1)

    def _count(self, run: str, received: int, sent: int, requests: int, replies: int) -> None:
        with contextlib.suppress(NoSpaceError), self._lock, transaction(self._db):
            self._db.execute(
                "INSERT INTO traffic VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run) DO UPDATE SET"
                " received=received+excluded.received, sent=sent+excluded.sent,"
                " requests=requests+excluded.requests, replies=replies+excluded.replies, at=excluded.at",
                (run, received, sent, requests, replies, time.time()),
            )

    def failed(self, run: str, round_: int, code: str, message: str) -> None:
        """Note a round that failed.

        Args:
            run: name of the run.
            round_: number of the round.
            code: of the failure.
            message: what to read.
        """
        with contextlib.suppress(NoSpaceError), self._lock, transaction(self._db):
            row = (time.time(), run, round_, code, message)
            self._db.execute("INSERT OR REPLACE INTO failure VALUES (1, ?, ?, ?, ?, ?)", row)

    def traffic(self) -> list[RunTraffic]:
        """Return the counts by run, the newest run first."""
        query = "SELECT run, received, sent, requests, replies FROM traffic ORDER BY at DESC"
        with self._lock:
            rows = self._db.execute(query).fetchall()
        return [RunTraffic(run=r, received=i, sent=o, requests=n, replies=m) for r, i, o, n, m in rows]

    def last_failure(self) -> Failure | None:
        """Return the newest failure, or None."""
        with self._lock:
            row = self._db.execute("SELECT at, run, round, code, message FROM failure").fetchone()
        return Failure(at=row[0], run=row[1], round=row[2], code=row[3], message=row[4]) if row else None
