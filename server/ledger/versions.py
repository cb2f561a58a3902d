"""The published versions of a run: rows in the ledger, and content-addressed blobs that these rows point at.

The database is SQLite (WAL, ``synchronous=FULL``). Only the newest versions keep their whole state; every version keeps
the envelope that leads to it from the version before, so that any state can be rebuilt.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fedcompress.errors import MismatchError, StateError
from fedcompress.merging.server_optim import ServerOptimizerState
from fedcompress.storage.blobs import BlobStore
from fedcompress.storage.database import open_database, transaction
from fedcompress.storage.tensor_file import TensorFile, iterate_bytes, streamed_state_digest
from fedcompress.types import Array, Layout, Tensors, to_bytes
from server.ledger.recovery import LEDGER, note_restored, recover_file
from server.ledger.schema import SCHEMA, upgrade
from server.ledger.state_replay import replay_envelopes


@dataclass(frozen=True)
class PublishedState:
    """A published version, with all that the next round needs of it.

    Attributes:
        version: its number; 0 is the start.
        digest: state digest, 32 bytes.
        state: tensors of the layout, float32.
        residual: what the downlink codec has left out so far, in the same layout.
        outer: memory of the server optimizer; None if it has none.
    """

    version: int
    digest: bytes
    state: Mapping[str, Array]
    residual: Mapping[str, Array]
    outer: ServerOptimizerState | None = None


class VersionLedger:
    """Holds the row of one run in the ledger of a state directory, and the versions that it has published.

    Args:
        folder: state directory; it is made if it is not there.
        run: name of the run.
        retention: newest versions that keep their whole state.

    Attributes:
        run: name of the run.
        notes: what was found damaged, and what was done about it.
        blobs: the files that rows point at.

    Raises:
        StateError: the ledger is damaged, and there is no good copy.
    """

    def __init__(self, folder: Path, run: str, *, retention: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.notes: list[str] = []
        self._folder = folder
        self._retention = retention
        self.blobs = BlobStore(folder / "blobs", "server.blob")
        if note := recover_file(folder):
            self.notes.append(note)
        self._db = open_database(folder / LEDGER, SCHEMA)
        upgrade(self._db)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """Return a context whose writes are committed together at its end, or not at all."""
        return transaction(self._db)

    def begin(self, layout: Layout, adapter_config: str, base_fingerprint: str) -> None:
        """Register the run, or check that it is the same run as before.

        Args:
            layout: of the adapter.
            adapter_config: PEFT's config as canonical JSON.
            base_fingerprint: of the base model, hex; empty if it is not known yet.

        Raises:
            MismatchError: the run exists with another layout, adapter or base.
        """
        row = self._db.execute(
            "SELECT layout, adapter_config, base_fingerprint FROM run WHERE run=?", (self.run,)
        ).fetchone()
        if row is None:
            values = (self.run, layout.to_json(), adapter_config, base_fingerprint)
            self._db.execute("INSERT INTO run VALUES (?, ?, ?, ?)", values)
            return
        is_same_adapter = row[:2] == (layout.to_json(), adapter_config)
        is_same_base = not base_fingerprint or row[2] in ("", base_fingerprint)
        if not is_same_adapter or not is_same_base:
            raise MismatchError(
                "run-exists", f"run: {self.run}: was begun with another adapter or base: choose a new name"
            )
        if base_fingerprint:
            self.base_fingerprint = base_fingerprint

    @property
    def base_fingerprint(self) -> str:
        """Return the fingerprint of the base model that this run accepts, hex; empty until one was seen."""
        return str(self._db.execute("SELECT base_fingerprint FROM run WHERE run=?", (self.run,)).fetchone()[0])

    @base_fingerprint.setter
    def base_fingerprint(self, value: str) -> None:
        """Set the fingerprint of the base model that this run accepts, hex."""
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

        Args:
            version: its number, one more than that of the version before.
            digest: state digest, 32 bytes.
            envelope: packed envelope that leads from the version before to this one; a snapshot for version 0.
            state: tensors of the layout, float32; files that are blobs already are not written again.
            residual: what the downlink codec has left out so far, in the same layout.
            outer: memory of the server optimizer.

        Raises:
            NonFiniteError: the state of the server optimizer has overflowed.
        """
        envelope_blob = self.blobs.put(envelope)
        state_blob = self._put_tensors(state)
        residual_blob = self._put_tensors(residual)
        optimizer_blob = self.blobs.put(outer.to_bytes()) if outer is not None and outer.slots else None
        self._db.execute(
            "UPDATE version SET state=NULL, residual=NULL, outer_state=NULL WHERE run=? AND version<=?",
            (self.run, version - self._retention),
        )
        blob_names = (state_blob, residual_blob, optimizer_blob)
        self._db.execute(
            "INSERT INTO version (run, version, digest, envelope, size, state, residual, outer_state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.run, version, digest.hex(), envelope_blob, len(envelope), *blob_names),
        )

    def _put_tensors(self, tensors: Mapping[str, Array]) -> str:
        """Return the name of the blob that holds the tensors; it is written unless they are one already."""
        if isinstance(tensors, TensorFile) and tensors.path.parent == self.blobs.folder:
            return tensors.path.name
        return self.blobs.put_all(iterate_bytes(tensors))

    def published(self, layout: Layout) -> PublishedState | None:
        """Read the last committed version that is readable; ``notes`` tell if it is not the last one.

        A state that is damaged is rebuilt from the envelopes that lead to it. Where the residual of the downlink or the
        memory of the server optimizer is damaged, the rounds since the version before are undone: sites answer them
        again from their outboxes.

        Args:
            layout: of the adapter.

        Returns:
            The version; None if nothing was published yet.

        Raises:
            StateError: no version can be read.
        """
        rows = self._db.execute(
            "SELECT version, digest, state, residual, outer_state FROM version"
            " WHERE run=? AND state IS NOT NULL ORDER BY version DESC",
            (self.run,),
        ).fetchall()
        for row in rows:
            version = row[0]
            try:
                published = self._read_version(layout, row)
            except StateError as error:
                self.notes.append(f"version {version}: {error}: falling back to the version before")
                continue
            if version != rows[0][0]:
                self._undo_after(version)
            return published
        if rows:
            raise StateError(f"ledger: run {self.run}: none of {len(rows)} versions that are kept whole can be read")
        return None

    def _read_version(self, layout: Layout, row: tuple[int, str, str, str, str | None]) -> PublishedState:
        version, digest, state_blob, residual_blob, optimizer_blob = row
        residual = TensorFile(self.blobs.path(residual_blob), layout)
        outer = ServerOptimizerState.from_bytes(self.blobs.get(optimizer_blob), layout) if optimizer_blob else None
        try:
            state = TensorFile(self.blobs.path(state_blob), layout)
        except StateError as error:
            self.blobs.replace(state_blob, to_bytes(self.state_at(version, layout)))
            state = TensorFile(self.blobs.path(state_blob), layout)
            self.notes.append(f"version {version}: {error}: its state was rebuilt from the envelopes that lead to it")
        if streamed_state_digest(layout, state).hex() != digest:
            raise StateError(f"version {version}: its state does not have the digest {digest[:16]}")
        return PublishedState(
            version=version, digest=bytes.fromhex(digest), state=state, residual=residual, outer=outer
        )

    def check(self, published: PublishedState) -> None:
        """Raise ``StateError`` if the file of the residual was changed since it was written.

        The residual is read from its file in each round. The state needs no such check: its digest is compared anyway.
        """
        if isinstance(published.residual, TensorFile):
            self.blobs.path(published.residual.path.name)

    def state_at(self, version: int, layout: Layout) -> Tensors:
        """Rebuild the state of a version from the envelopes that lead to it.

        Raises:
            StateError: there is no such version, or an envelope is damaged.
        """
        rows = self._db.execute(
            "SELECT envelope FROM version WHERE run=? AND version<=? ORDER BY version", (self.run, version)
        ).fetchall()
        if len(rows) != version + 1:
            raise StateError(f"version: {version}: run {self.run} has versions 0 to {len(rows) - 1}")
        return replay_envelopes(self.blobs, layout, [name for (name,) in rows])

    def _undo_after(self, version: int) -> None:
        """Delete all rounds and versions that came after a version."""
        note_restored(self._folder)
        with self.transaction():
            rounds = "SELECT round FROM round WHERE run=? AND version>?"
            run_and_version = (self.run, version)
            self._db.execute(f"DELETE FROM merged WHERE run=? AND round IN ({rounds})", (self.run, *run_and_version))
            for table in ("round", "version"):
                self._db.execute(f"DELETE FROM {table} WHERE run=? AND version>?", run_and_version)
            self._db.execute("UPDATE site SET acked=NULL WHERE run=? AND acked>?", run_and_version)
            last = "SELECT digest FROM merged m WHERE m.run=site.run AND m.site=site.site ORDER BY round DESC LIMIT 1"
            self._db.execute(f"UPDATE site SET merged=COALESCE(({last}), '') WHERE run=?", (self.run,))

    def chain_size(self, after: int | None) -> int:
        """Return the bytes of the envelopes that lead from version ``after`` (None: from nothing) to the newest."""
        query = "SELECT COALESCE(SUM(size), 0) FROM version WHERE run=? AND version>?"
        return int(self._db.execute(query, (self.run, -1 if after is None else after)).fetchone()[0])

    def envelopes(self, after: int | None) -> list[bytes]:
        """Read the envelopes that lead from version ``after`` (None: from nothing) to the newest, in order.

        Raises:
            StateError: one is missing, or its bytes changed.
        """
        query = "SELECT envelope FROM version WHERE run=? AND version>? ORDER BY version"
        rows = self._db.execute(query, (self.run, -1 if after is None else after)).fetchall()
        return [self.blobs.get(name) for (name,) in rows]

    def collect_garbage(self) -> int:
        """Delete blobs that no row of any run points at, and return how many those were."""
        rows = self._db.execute("SELECT envelope, state, residual, outer_state FROM version").fetchall()
        return self.blobs.keep_only(name for row in rows for name in row if name)
