"""The replies that a site has made: kept until the coordinator says what became of them.

A reply is ``open`` until then, ``merged`` once the coordinator names its digest, and ``returned`` once its update was
given back to the residual. Every method is a part of the caller's transaction.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedcompress.errors import StateError
from fedcompress.storage.blobs import BlobStore

LOG = logging.getLogger("fedcompress.worker")
SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
  run TEXT NOT NULL, round INTEGER NOT NULL, base_digest TEXT NOT NULL, digest TEXT NOT NULL,
  blob TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('open', 'merged', 'returned')),
  PRIMARY KEY (run, round));
"""
KEPT_ROUNDS = 8  # rounds for which replies are kept after they were settled


@dataclass(frozen=True)
class OutboxEntry:
    """A reply whose fate is to be settled.

    Args:
        round: the round that it answers.
        digest: of the envelope, hex.
        blob: name of the blob that holds the envelope.
        status: ``open``, ``merged`` or ``returned``.
    """

    round: int
    digest: str
    blob: str
    status: str


class Outbox:
    """Keeps the replies of all runs in a table of the site's database, and their envelopes in its blobs."""

    def __init__(self, database: sqlite3.Connection, blobs: BlobStore) -> None:
        self._db = database
        self._blobs = blobs

    def blob_names(self) -> Iterator[str]:
        """Yield the names of all blobs that hold replies."""
        return (name for (name,) in self._db.execute("SELECT blob FROM outbox"))

    def find_reply(self, run: str, round_: int, base_digest: bytes) -> bytes | None:
        """Return the open reply to a round that was done from the same state, or None.

        Args:
            run: name of the run.
            round_: the round asked for.
            base_digest: of the published state that the round starts from.

        Returns:
            The envelope.

        Raises:
            StateError: its blob is missing or changed.
        """
        row = self._db.execute(
            "SELECT blob FROM outbox WHERE run=? AND round=? AND base_digest=? AND status='open'",
            (run, round_, base_digest.hex()),
        ).fetchone()
        return self._blobs.get(row[0]) if row is not None else None

    def find_last(self, run: str) -> bytes | None:
        """Return the newest reply of a run; None where there is none, or it cannot be read."""
        row = self._db.execute("SELECT blob FROM outbox WHERE run=? ORDER BY round DESC LIMIT 1", (run,)).fetchone()
        return read_or_warn(self._blobs, row[0]) if row is not None else None

    def check_open(self, run: str) -> None:
        """Raise ``StateError`` if a reply that may have to be replayed or given back is corrupt."""
        for (blob,) in self._db.execute("SELECT blob FROM outbox WHERE run=? AND status='open'", (run,)).fetchall():
            self._blobs.get(blob)

    def add(self, run: str, round_: int, base_digest: bytes, digest: bytes, blob: str) -> None:
        """Add the reply to a round, and drop settled ones of long ago.

        Args:
            run: name of the run.
            round_: the round that it answers.
            base_digest: of the published state that the round started from.
            digest: of the envelope.
            blob: name of the blob that holds the envelope.
        """
        self._db.execute("DELETE FROM outbox WHERE run=? AND status!='open' AND round<?", (run, round_ - KEPT_ROUNDS))
        self._db.execute(
            "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?, 'open')",
            (run, round_, base_digest.hex(), digest.hex(), blob),
        )

    def replace(self, run: str, round_: int, digest: bytes, blob: str) -> None:
        """Put another envelope in the place of a reply: the same one under another signature.

        Args:
            run: name of the run.
            round_: the round that it answers.
            digest: of the new envelope.
            blob: name of the blob that holds it.
        """
        self._db.execute(
            "UPDATE outbox SET digest=?, blob=? WHERE run=? AND round=?", (digest.hex(), blob, run, round_)
        )

    def reopen_from(self, run: str, round_: int) -> None:
        """Open the merged replies to a round and later ones: a coordinator that asks for it again has undone them."""
        self._db.execute("UPDATE outbox SET status='open' WHERE run=? AND status='merged' AND round>=?", (run, round_))

    def list_unsettled(self, run: str, round_: int, base_digest: bytes, merged: Sequence[str]) -> list[OutboxEntry]:
        """List the replies whose fate a request tells, but for a reply to this very request.

        Args:
            run: name of the run.
            round_: the round asked for.
            base_digest: of the published state that it starts from; empty where no stored reply will be sent.
            merged: hex digests of what was merged last.

        Returns:
            Open replies, and returned ones that were merged after all, in the order of their rounds.
        """
        rows = self._db.execute(
            "SELECT round, digest, blob, status FROM outbox WHERE run=? AND round<=?"
            " AND (status='returned' OR (status='open' AND NOT (round=? AND base_digest=?))) ORDER BY round",
            (run, round_, round_, base_digest.hex()),
        ).fetchall()
        entries = [OutboxEntry(*row) for row in rows]
        return [entry for entry in entries if entry.status == "open" or entry.digest in merged]

    def settle(self, run: str, entry: OutboxEntry, *, is_merged: bool) -> None:
        """Note what became of a reply.

        Args:
            run: name of the run.
            entry: the reply.
            is_merged: its update was merged; else it was given back to the residual.
        """
        status = "merged" if is_merged else "returned"
        self._db.execute("UPDATE outbox SET status=? WHERE run=? AND round=?", (status, run, entry.round))

    def clear(self, run: str) -> None:
        """Drop all replies of a run."""
        self._db.execute("DELETE FROM outbox WHERE run=?", (run,))


def read_or_warn(blobs: BlobStore, name: str) -> bytes | None:
    """Read a blob that can be done without; None, and a line in the log, where it is missing or changed."""
    try:
        return blobs.get(name)
    except StateError as error:
        LOG.warning("%s", error)
        return None
