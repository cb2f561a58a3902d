"""The coordinator's ledger: what was published, sent, received, merged and refused.

SQLite (WAL, ``synchronous=FULL``); tensors lie in content-addressed blobs that rows point
at. A round is one transaction: killed before it, the round is done again and the sites
answer from their outboxes; killed after it, the next round begins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fedcompress.blobs import BlobStore
from fedcompress.database import open_database, transaction
from fedcompress.errors import MismatchError
from fedcompress.merging.outer import OuterState
from fedcompress.types import Layout, Tensors, from_bytes, to_bytes

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  run TEXT PRIMARY KEY, layout TEXT NOT NULL, adapter_config TEXT NOT NULL, base_fingerprint TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS version (
  run TEXT NOT NULL, version INTEGER NOT NULL, digest TEXT NOT NULL,
  envelope TEXT NOT NULL, size INTEGER NOT NULL, state TEXT, residual TEXT, outer_state TEXT,
  PRIMARY KEY (run, version));
CREATE TABLE IF NOT EXISTS round (
  run TEXT NOT NULL, round INTEGER NOT NULL, version INTEGER NOT NULL, asked INTEGER NOT NULL,
  merged INTEGER NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (run, round));
CREATE TABLE IF NOT EXISTS message (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, node TEXT NOT NULL,
  site TEXT NOT NULL, direction TEXT NOT NULL CHECK (direction IN ('up', 'down')),
  kind TEXT NOT NULL, payload INTEGER NOT NULL, digest TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS metric (
  run TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (run, round, site, name));
CREATE TABLE IF NOT EXISTS refusal (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, node TEXT NOT NULL,
  site TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS site (
  run TEXT NOT NULL, site TEXT NOT NULL, node TEXT NOT NULL, acked INTEGER, merged TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (run, site));
"""


@dataclass(frozen=True)
class Published:
    """The last committed version: state, digest, what the downlink code left out, what the optimizer remembers."""

    version: int
    digest: bytes
    state: Tensors
    residual: Tensors
    outer: OuterState | None = None


@dataclass(frozen=True)
class SiteRow:
    """What is known of a site: acknowledged version (None: nothing) and last merged update."""

    site: str
    node: int
    acked: int | None
    merged: str


class Ledger:
    """One run's rows in the ledger of a state directory."""

    def __init__(self, folder: Path, run: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.blobs = BlobStore(folder / "blobs")
        self._db = open_database(folder / "ledger.db", _SCHEMA)
        if "outer_state" not in {row[1] for row in self._db.execute("PRAGMA table_info(version)")}:
            self._db.execute("ALTER TABLE version ADD COLUMN outer_state TEXT")  # a ledger from before it

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing."""
        return transaction(self._db)

    def begin(self, layout: Layout, adapter_config: str, base_fingerprint: str) -> None:
        """Register the run, or check that it is the same run as before.

        Raises:
            MismatchError: the run exists with another layout, adapter or base.
        """
        row = self._db.execute(
            "SELECT layout, adapter_config, base_fingerprint FROM run WHERE run=?", (self.run,)
        ).fetchone()
        if row is None:
            values = (self.run, layout.to_json(), adapter_config, base_fingerprint)
            self._db.execute("INSERT INTO run VALUES (?, ?, ?, ?)", values)
        elif row[:2] != (layout.to_json(), adapter_config) or (
            base_fingerprint and row[2] not in ("", base_fingerprint)
        ):
            raise MismatchError(
                "run-exists", f"run: {self.run}: was begun with another adapter or base: choose a new name"
            )
        elif base_fingerprint:
            self.base_fingerprint = base_fingerprint

    @property
    def base_fingerprint(self) -> str:
        """Hex fingerprint of the base that this run accepts; empty until one was seen."""
        return str(self._db.execute("SELECT base_fingerprint FROM run WHERE run=?", (self.run,)).fetchone()[0])

    @base_fingerprint.setter
    def base_fingerprint(self, value: str) -> None:
        self._db.execute("UPDATE run SET base_fingerprint=? WHERE run=?", (value, self.run))

    def publish(
        self,
        version: int,
        digest: bytes,
        envelope: bytes,
        state: Tensors,
        residual: Tensors,
        outer: OuterState | None = None,
    ) -> None:
        """Add a version; only the newest keeps its whole state. Call it in a transaction.

        Raises:
            NonFiniteError: the state of the server optimizer has overflowed.
        """
        names: list[str | None] = [self.blobs.put(data) for data in (envelope, to_bytes(state), to_bytes(residual))]
        names.append(self.blobs.put(outer.to_bytes()) if outer is not None and outer.slots else None)
        self._db.execute("UPDATE version SET state=NULL, residual=NULL, outer_state=NULL WHERE run=?", (self.run,))
        self._db.execute(
            "INSERT INTO version (run, version, digest, envelope, size, state, residual, outer_state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.run, version, digest.hex(), names[0], len(envelope), *names[1:]),
        )

    def published(self, layout: Layout) -> Published | None:
        """The last committed version, or None.

        Raises:
            StateError: a blob is missing or changed.
        """
        row = self._db.execute(
            "SELECT version, digest, state, residual, outer_state FROM version"
            " WHERE run=? ORDER BY version DESC LIMIT 1",
            (self.run,),
        ).fetchone()
        if row is None:
            return None
        state, residual = (from_bytes(self.blobs.get(name), layout) for name in row[2:4])
        outer = OuterState.from_bytes(self.blobs.get(row[4]), layout) if row[4] else None
        return Published(row[0], bytes.fromhex(row[1]), state, residual, outer)

    def envelopes(self, after: int | None) -> list[bytes]:
        """Envelopes that lead from version ``after`` (None: from nothing) to the newest."""
        rows = self._db.execute(
            "SELECT envelope FROM version WHERE run=? AND version>? ORDER BY version",
            (self.run, -1 if after is None else after),
        ).fetchall()
        return [self.blobs.get(name) for (name,) in rows]

    def end_round(
        self, round_: int, version: int, asked: int, merged: Sequence[tuple[str, str]], seconds: float
    ) -> None:
        """Record a round and the updates it merged, as (site, digest). Call it in a transaction."""
        self._db.execute(
            "INSERT INTO round VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, version, asked, len(merged), seconds, time.time()),
        )
        for site, digest in merged:
            self._db.execute("UPDATE site SET merged=? WHERE run=? AND site=?", (digest, self.run, site))

    @property
    def rounds_done(self) -> int:
        """Number of the last committed round; 0 if there is none."""
        row = self._db.execute("SELECT MAX(round) FROM round WHERE run=?", (self.run,)).fetchone()
        return int(row[0] or 0)

    def record_message(
        self, round_: int, node: int, site: str, direction: str, kind: str, payload: int, digest: str
    ) -> None:
        """One message that crossed Flower; ``payload`` in bytes."""
        self._db.execute(
            "INSERT INTO message (run, round, node, site, direction, kind, payload, digest, at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, str(node), site, direction, kind, payload, digest, time.time()),
        )

    def record_refusal(self, round_: int, node: int, site: str, code: str, message: str) -> None:
        """One reply that was not admitted, or a failure that a site reported."""
        self._db.execute(
            "INSERT INTO refusal (run, round, node, site, code, message, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, str(node), site, code, message[:2000], time.time()),
        )

    def record_metrics(self, round_: int, site: str, metrics: dict[str, float]) -> None:
        """What a site measured."""
        self._db.executemany(
            "INSERT OR REPLACE INTO metric VALUES (?, ?, ?, ?, ?)",
            [(self.run, round_, site, name, value) for name, value in metrics.items()],
        )

    def acknowledge(self, site: str, node: int, acked: int | None) -> None:
        """Remember which version a site holds, and behind which node it is."""
        self._db.execute(
            "INSERT INTO site (run, site, node, acked) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (run, site) DO UPDATE SET node=excluded.node, acked=excluded.acked",
            (self.run, site, str(node), acked),
        )

    def forget(self, node: int) -> None:
        """The site behind a node says that it does not hold what we believed, or is another one."""
        self._db.execute("UPDATE site SET acked=NULL, node='-1' WHERE run=? AND node=?", (self.run, str(node)))

    def sites(self) -> list[SiteRow]:
        """All sites seen in this run, by name."""
        rows = self._db.execute(
            "SELECT site, node, acked, merged FROM site WHERE run=? ORDER BY site", (self.run,)
        ).fetchall()
        return [SiteRow(site, int(node), acked, merged) for site, node, acked, merged in rows]

    def payload_bytes(self, direction: str, round_: int | None = None) -> tuple[int, int]:
        """Payload bytes and messages of a direction, in one round or in all."""
        where, args = ("", ()) if round_ is None else (" AND round=?", (round_,))
        row = self._db.execute(
            f"SELECT COALESCE(SUM(payload), 0), COUNT(*) FROM message WHERE run=? AND direction=?{where}",
            (self.run, direction, *args),
        ).fetchone()
        return int(row[0]), int(row[1])

    def collect_garbage(self) -> int:
        """Delete blobs that no row of any run points at."""
        rows = self._db.execute("SELECT envelope, state, residual, outer_state FROM version").fetchall()
        return self.blobs.keep_only(name for row in rows for name in row if name)
