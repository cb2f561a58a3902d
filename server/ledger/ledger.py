"""The coordinator's ledger: what was published, sent, received, merged and refused.

SQLite (WAL, ``synchronous=FULL``); tensors lie in content-addressed blobs that rows point
at. A round is one transaction: killed before it, the round is done again and the sites
answer from their outboxes; killed after it, the next round begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedcompress.errors import MismatchError, StateError
from fedcompress.merging.server_optim import ServerOptimizerState
from fedcompress.storage.blobs import BlobStore
from fedcompress.storage.database import open_database, transaction
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.tensor_file import TensorFile, iterate_bytes, streamed_state_digest
from fedcompress.types import Array, Layout, Tensors, to_bytes
from server.ledger.link_traffic import record_report, report_of
from server.ledger.recovery import LEDGER, copy_ledger, note_restored, recover_file
from server.ledger.schema import SCHEMA, upgrade
from server.ledger.state_replay import replay_envelopes

OWN_CODES = (
    "deadline",
    "stale",
    "norm",
)  # reasons of refusals whose site the coordinator knows; others' sites are claims


@dataclass(frozen=True)
class PublishedState:
    """The last committed version: state, digest, what the downlink code left out, what the optimizer remembers."""

    version: int
    digest: bytes
    state: Mapping[str, Array]
    residual: Mapping[str, Array]
    outer: ServerOptimizerState | None = None


@dataclass(frozen=True)
class SiteRow:
    """What is known of a site.

    Attributes:
        site: its name.
        node: behind which it was last.
        acked: version that it holds, None for nothing.
        merged: digest of its last merged update, hex.
        examples: that it trained on last.
        rate: bytes a second of its last exchange.
    """

    site: str
    node: int
    acked: int | None
    merged: str
    examples: int = 0
    rate: float = 0.0


@dataclass(frozen=True)
class MergedRow:
    """One update of a round: whose, its digest in hex, the version it was trained from, and its norm."""

    site: str
    digest: str
    trained_version: int
    norm: float


class Ledger:
    """One run's rows in the ledger of a state directory.

    Attributes:
        notes: what was found damaged, and what was done about it.
    """

    def __init__(self, folder: Path, run: str, *, retention: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.notes: list[str] = []
        self._folder, self._retention = folder, retention
        self.blobs = BlobStore(folder / "blobs", "server.blob")
        if note := recover_file(folder):
            self.notes.append(note)
        self._db = open_database(folder / LEDGER, SCHEMA)
        upgrade(self._db)

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
        state: Mapping[str, Array],
        residual: Mapping[str, Array],
        outer: ServerOptimizerState | None = None,
    ) -> None:
        """Add a version; only the newest few keep their whole state. Call it in a transaction.

        Raises:
            NonFiniteError: the state of the server optimizer has overflowed.
        """
        names: list[str | None] = [self.blobs.put(envelope), self._kept(state), self._kept(residual)]
        names.append(self.blobs.put(outer.to_bytes()) if outer is not None and outer.slots else None)
        self._db.execute(
            "UPDATE version SET state=NULL, residual=NULL, outer_state=NULL WHERE run=? AND version<=?",
            (self.run, version - self._retention),
        )
        self._db.execute(
            "INSERT INTO version (run, version, digest, envelope, size, state, residual, outer_state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.run, version, digest.hex(), names[0], len(envelope), *names[1:]),
        )

    def _kept(self, tensors: Mapping[str, Array]) -> str:
        """Name of the blob that they are; written if they are none yet."""
        if isinstance(tensors, TensorFile) and tensors.path.parent == self.blobs.folder:
            return tensors.path.name
        return self.blobs.put_all(iterate_bytes(tensors))

    def published(self, layout: Layout) -> PublishedState | None:
        """The last committed version that can be read, or None; says in ``notes`` if it is not the last.

        A state that is damaged is rebuilt from the envelopes that lead to it. Where what the downlink left out, or
        what the server optimizer remembers, is damaged, the rounds since the version before are undone: sites
        answer them from their outboxes.

        Raises:
            StateError: no version can be read.
        """
        rows = self._db.execute(
            "SELECT version, digest, state, residual, outer_state FROM version"
            " WHERE run=? AND state IS NOT NULL ORDER BY version DESC",
            (self.run,),
        ).fetchall()
        for version, digest, state, residual, outer in rows:
            try:
                found = self._read(layout, version, digest, state, residual, outer)
            except StateError as error:
                self.notes.append(f"version {version}: {error}: falling back to the version before")
                continue
            if version != rows[0][0]:
                self._undo(version)
            return found
        if rows:
            raise StateError(f"ledger: run {self.run}: none of {len(rows)} versions that are kept whole can be read")
        return None

    def _read(
        self, layout: Layout, version: int, digest: str, state: str, residual: str, outer: str | None
    ) -> PublishedState:
        rest = TensorFile(self.blobs.path(residual), layout)
        memory = ServerOptimizerState.from_bytes(self.blobs.get(outer), layout) if outer else None
        try:
            values = TensorFile(self.blobs.path(state), layout)
        except StateError as error:
            self.blobs.replace(state, to_bytes(self.state_at(version, layout)))
            values = TensorFile(self.blobs.path(state), layout)
            self.notes.append(f"version {version}: {error}: its state was rebuilt from the envelopes that lead to it")
        if streamed_state_digest(layout, values).hex() != digest:
            raise StateError(f"version {version}: its state does not have the digest {digest[:16]}")
        return PublishedState(version, bytes.fromhex(digest), values, rest, memory)

    def check(self, published: PublishedState) -> None:
        """What the downlink left out is read from its file in each round; the state's digest is compared anyway.

        Raises:
            StateError: the file was changed since it was written.
        """
        if isinstance(published.residual, TensorFile):
            self.blobs.path(published.residual.path.name)

    def state_at(self, version: int, layout: Layout) -> Tensors:
        """The state that was published as a version, from the envelopes that lead to it.

        Raises:
            StateError: there is no such version, or an envelope is damaged.
        """
        rows = self._db.execute(
            "SELECT envelope FROM version WHERE run=? AND version<=? ORDER BY version", (self.run, version)
        ).fetchall()
        if len(rows) != version + 1:
            raise StateError(f"version: {version}: run {self.run} has versions 0 to {len(rows) - 1}")
        return replay_envelopes(self.blobs, layout, [name for (name,) in rows])

    def _undo(self, version: int) -> None:
        """Drop all that came after a version."""
        note_restored(self._folder)
        with self.transaction():
            rounds = "SELECT round FROM round WHERE run=? AND version>?"
            run, after = self.run, (self.run, version)
            self._db.execute(f"DELETE FROM merged WHERE run=? AND round IN ({rounds})", (run, *after))
            for table in ("round", "version"):
                self._db.execute(f"DELETE FROM {table} WHERE run=? AND version>?", after)
            self._db.execute("UPDATE site SET acked=NULL WHERE run=? AND acked>?", after)
            last = "SELECT digest FROM merged m WHERE m.run=site.run AND m.site=site.site ORDER BY round DESC LIMIT 1"
            self._db.execute(f"UPDATE site SET merged=COALESCE(({last}), '') WHERE run=?", (run,))

    def chain_size(self, after: int | None) -> int:
        """Bytes of the envelopes that lead from version ``after`` (None: from nothing) to the newest."""
        query = "SELECT COALESCE(SUM(size), 0) FROM version WHERE run=? AND version>?"
        return int(self._db.execute(query, (self.run, -1 if after is None else after)).fetchone()[0])

    def envelopes(self, after: int | None) -> list[bytes]:
        """Envelopes that lead from version ``after`` (None: from nothing) to the newest.

        Raises:
            StateError: one is missing, or its bytes changed.
        """
        query = "SELECT envelope FROM version WHERE run=? AND version>? ORDER BY version"
        rows = self._db.execute(query, (self.run, -1 if after is None else after)).fetchall()
        return [self.blobs.get(name) for (name,) in rows]

    def end_round(self, round_: int, version: int, asked: int, merged: Sequence[MergedRow], seconds: float) -> None:
        """Record a round and the updates it merged. Call it in a transaction."""
        self._db.execute(
            "INSERT INTO round VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, version, asked, len(merged), seconds, time.time()),
        )
        for row in merged:
            values = (self.run, round_, row.site, row.digest, row.trained_version, row.norm)
            self._db.execute("INSERT INTO merged VALUES (?, ?, ?, ?, ?, ?)", values)
            self._db.execute("UPDATE site SET merged=? WHERE run=? AND site=?", (row.digest, self.run, row.site))
        failpoint("server.before-commit")

    def merged_since(self, round_: int) -> set[str]:
        """Sites of which this round or a later one merged an update."""
        rows = self._db.execute("SELECT site FROM merged WHERE run=? AND round>=?", (self.run, round_))
        return {site for (site,) in rows}

    def norms(self, last: int) -> list[float]:
        """Norms of the updates that the last rounds merged."""
        rows = self._db.execute(
            "SELECT norm FROM merged WHERE run=? AND round>(SELECT COALESCE(MAX(round), 0) FROM round WHERE run=?) - ?",
            (self.run, self.run, last),
        )
        return [norm for (norm,) in rows]

    def open_task(self, round_: int, version: int, node: int, site: str, seconds: float) -> int:
        """Somebody is awaited, for so many seconds; returns a number to close it by."""
        now = time.time()
        values = (self.run, round_, version, str(node), site, now, now + seconds)
        cursor = self._db.execute(
            "INSERT INTO task (run, round, version, node, site, sent, until) VALUES (?, ?, ?, ?, ?, ?, ?)", values
        )
        return int(cursor.lastrowid or 0)

    def close_task(self, number: int, outcome: str, site: str = "") -> None:
        """Nobody is awaited for it any more."""
        self._db.execute(
            "UPDATE task SET closed=?, outcome=?, site=CASE WHEN ?='' THEN site ELSE ? END WHERE id=?",
            (time.time(), outcome, site, site, number),
        )

    def extend_tasks(self, seconds: float) -> None:
        """All that are open are awaited for so many more seconds from now."""
        self._db.execute("UPDATE task SET until=? WHERE run=? AND outcome='open'", (time.time() + seconds, self.run))

    def close_tasks(self, outcome: str) -> None:
        """All that are open: of a process that was killed, or a run that has ended."""
        self._db.execute(
            "UPDATE task SET closed=?, outcome=? WHERE run=? AND outcome='open'", (time.time(), outcome, self.run)
        )

    @property
    def rounds_done(self) -> int:
        """Number of the last committed round; 0 if there is none."""
        row = self._db.execute("SELECT MAX(round) FROM round WHERE run=?", (self.run,)).fetchone()
        return int(row[0] or 0)

    def record_message(
        self, round_: int, node: int, site: str, direction: str, kind: str, payload: int, digest: str, protocol: int = 0
    ) -> None:
        """One message that crossed Flower; bytes of ``payload``, and of what Flower carries with it."""
        self._db.execute(
            "INSERT INTO message (run, round, node, site, direction, kind, payload, digest, at, protocol)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self.run, round_, str(node), site, direction, kind, payload, digest, time.time(), protocol),
        )

    def record_wire(self, round_: int, node: int, site: str, status: Mapping[str, Any]) -> None:
        """What a site says has crossed its link, if its reply's status says so; the reply is recorded already."""
        report = report_of(status)
        if report is not None:
            record_report(self._db, self.run, round_, site, node, report)

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

    def acknowledge(self, site: str, node: int, acked: int | None, examples: int = 0, rate: float = 0.0) -> None:
        """Remember which version a site holds, behind which node it is, and how much it has."""
        self._db.execute(
            "INSERT INTO site (run, site, node, acked, examples, rate) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (run, site) DO UPDATE SET node=excluded.node, acked=excluded.acked,"
            " examples=excluded.examples, rate=excluded.rate",
            (self.run, site, str(node), acked, examples, rate),
        )

    def forget(self, node: int, *, is_other: bool) -> None:
        """The site behind a node says that it does not hold what we believed, or that it is another one."""
        node_now = ", node='-1'" if is_other else ""
        self._db.execute(f"UPDATE site SET acked=NULL{node_now} WHERE run=? AND node=?", (self.run, str(node)))

    def refused(self, node: int, site: str) -> list[str]:
        """What was refused of a node, or of its site, since it was asked last, as a site is told it.

        At most three, the newest first.
        """
        keys = [("node", str(node), ""), ("site", site, f" AND code IN ({', '.join(map(repr, OWN_CODES))})")][
            : 1 + bool(site)
        ]
        tasks = "SELECT COALESCE(MAX(round), 0) FROM task WHERE run=? AND"
        last = max(self._db.execute(f"{tasks} {key}=?", (self.run, value)).fetchone()[0] for key, value, _ in keys)
        found: dict[int, str] = {}
        for key, value, rest in keys:
            query = f"SELECT id, round, code, message FROM refusal WHERE run=? AND {key}=? AND round>=?{rest}"
            for number, round_, code, message in self._db.execute(
                f"{query} ORDER BY id DESC LIMIT 3", (self.run, value, last)
            ):
                found[number] = f"{round_}: {code}: {message[:200]}"
        return [found[number] for number in sorted(found, reverse=True)[:3]]

    def sites(self) -> list[SiteRow]:
        """All sites seen in this run, by name."""
        rows = self._db.execute(
            "SELECT site, node, acked, merged, examples, rate FROM site WHERE run=? ORDER BY site", (self.run,)
        ).fetchall()
        return [SiteRow(site, int(node), *rest) for site, node, *rest in rows]

    def payload_bytes(self, direction: str, round_: int | None = None) -> tuple[int, int]:
        """Payload bytes, and messages that were to carry some, of a direction, in one round or in all."""
        where, args = ("", ()) if round_ is None else (" AND round=?", (round_,))
        row = self._db.execute(
            "SELECT COALESCE(SUM(payload), 0), COALESCE(SUM(kind != 'failure'), 0) FROM message"
            f" WHERE run=? AND direction=?{where}",
            (self.run, direction, *args),
        ).fetchone()
        return int(row[0]), int(row[1])

    def collect_garbage(self) -> int:
        """Delete blobs that no row of any run points at."""
        rows = self._db.execute("SELECT envelope, state, residual, outer_state FROM version").fetchall()
        return self.blobs.keep_only(name for row in rows for name in row if name)

    def copy(self) -> None:
        """Copy the ledger beside itself, for the case that a disk damages it."""
        copy_ledger(self._db, self._folder, self.rounds_done)
