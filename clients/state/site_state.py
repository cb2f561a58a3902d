"""What a site must not lose: published state, residual and outbox, in one transaction.

SQLite rows point at content-addressed blobs. A round is committed by one transaction that
holds the reply and the residual that goes with it; killed before, the round is done again;
killed after, the reply is answered from the outbox.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from clients.state import rollback
from fedcompress.chunks import read_slices
from fedcompress.codecs import pack_residual, unpack_residual
from fedcompress.errors import MismatchError, StateError
from fedcompress.pipeline.coding import check_layout
from fedcompress.pipeline.states import decode_constants, decode_state, stream_state
from fedcompress.pipeline.updates import decode_update, stream_decoded_update
from fedcompress.storage.blobs import BlobStore, BlobWriter
from fedcompress.storage.database import open_database, transaction
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.tensor_file import MAGIC, open_tensor_file, serialize_chunks, streamed_state_digest
from fedcompress.types import Array, Layout, Tensors, add, from_bytes, state_digest, subtract, to_bytes, zeros
from fedcompress.wire import Kind, Limits, split_bundle, unpack
from fedcompress.wire import digest_of as envelope_digest

LOG = logging.getLogger("fedcompress.worker")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  run TEXT PRIMARY KEY, layout TEXT NOT NULL, version INTEGER NOT NULL,
  state TEXT NOT NULL, residual TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outbox (
  run TEXT NOT NULL, round INTEGER NOT NULL, base_digest TEXT NOT NULL, digest TEXT NOT NULL,
  blob TEXT NOT NULL, status TEXT NOT NULL CHECK (status IN ('open', 'merged', 'returned')),
  PRIMARY KEY (run, round));
CREATE TABLE IF NOT EXISTS constant (run TEXT PRIMARY KEY, digest TEXT NOT NULL, blob TEXT NOT NULL);
"""
Change = Callable[[Mapping[str, Array], Mapping[str, Array]], Tensors]
STREAM = "stream:"  # before the names of blobs whose tensors are read part by part
MAX_CONSTANTS = 1 << 34  # bytes


@dataclass(frozen=True)
class RunSnapshot:
    """What the site holds of a run."""

    layout: Layout
    version: int
    state: Mapping[str, Array]
    residual: Mapping[str, Array]
    file: Path | None = None  # of the state, where tensors stay on the disk and are read part by part

    @property
    def is_stream(self) -> bool:
        """Whether they do."""
        return self.file is not None

    @cached_property
    def digest(self) -> bytes:
        """Digest of the published state."""
        return (
            streamed_state_digest(self.layout, self.state) if self.is_stream else state_digest(self.layout, self.state)
        )


class SiteState:
    """Durable state of one site; used by one worker at a time, which holds the lease."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._blobs = BlobStore(folder / "blobs", "site.blob")
        self._db = open_database(folder / "session.db", _SCHEMA + rollback.SCHEMA, any_thread=True)
        self._checked: dict[str, Path] = {}

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with transaction(self._db):
            yield
        rows = self._db.execute(
            "SELECT state, residual FROM run UNION ALL SELECT blob, blob FROM outbox"
            " UNION ALL SELECT blob, blob FROM constant"
        )
        names = {name.removeprefix(STREAM) for row in rows for name in row}
        self._checked = {name: path for name, path in self._checked.items() if name in names}
        self._blobs.keep_only(names)

    def held(self, run: str) -> RunSnapshot | None:
        """What is held of ``run``, or None.

        Raises:
            StateError: a blob is missing or changed.
        """
        row = self._db.execute("SELECT layout, version, state, residual FROM run WHERE run=?", (run,)).fetchone()
        if row is None:
            return None
        layout = Layout.from_json(row[0])
        if row[2].startswith(STREAM):
            state, residual = (open_tensor_file(self._path(name), layout) for name in row[2:4])
            return RunSnapshot(layout, row[1], state, residual, self._path(row[2]))
        whole = from_bytes(self._blobs.get(row[2]), layout)
        return RunSnapshot(layout, row[1], whole, unpack_residual(self._blobs.get(row[3]), layout))

    def _path(self, name: str) -> Path:
        """File of a stream; its bytes are checked once in the life of this session."""
        blob = name.removeprefix(STREAM)
        if blob not in self._checked:
            self._checked[blob] = self._blobs.path(blob)
        return self._checked[blob]

    @contextmanager
    def stream(self) -> Iterator[BlobWriter]:
        """A blob to write a stream to."""
        with self._blobs.writer() as writer:
            yield writer

    def residual(self, run: str, layout: Layout) -> Mapping[str, Array]:
        """What was not sent of a run that is held.

        Raises:
            StateError: its blob is missing or changed.
        """
        (name,) = self._db.execute("SELECT residual FROM run WHERE run=?", (run,)).fetchone()
        if name.startswith(STREAM):
            self._checked.pop(name.removeprefix(STREAM), None)  # a disk may have changed it since the last round
            return open_tensor_file(self._path(name), layout)
        return unpack_residual(self._blobs.get(name), layout)

    def apply_downlink(self, run: str, layout: Layout, bundle: bytes, *, is_stream: bool = False) -> RunSnapshot:
        """Advance the published state along the envelopes of a downlink.

        Starts at the last envelope that fits: one that begins at the state held, or a
        snapshot. A downlink that ends where the site already is changes no tensor. If what
        is held is corrupt, a downlink with a snapshot starts anew; residual and outbox are lost.
        With ``is_stream`` tensors are never in memory together.

        Raises:
            WireError: malformed bytes.
            MismatchError: no envelope fits, or the digest reached is not the sender's.
            StateError: what is held is corrupt, and there is no snapshot.
        """
        limits = Limits.for_numel(layout.numel)
        pieces = split_bundle(bundle, Limits(max_body=max(limits.max_body, MAX_CONSTANTS)))
        if len(pieces) > 1 and _is_constants(pieces[0]):
            self._keep_constants(run, pieces.pop(0))
        headers = [unpack(piece, limits).header for piece in pieces]
        for header in headers:
            check_layout(header, layout)
        try:
            held = self.held(run)
            self._check_outbox(run)
        except StateError as error:
            if not any(h.kind is Kind.SNAPSHOT for h in headers):
                raise
            LOG.error("run %s: residual and outbox are lost, starting anew: %s", run, error)
            self._forget(run)
            held = None
        if held is not None and held.layout != layout:
            raise MismatchError("layout-mismatch", f"run {run}: has begun with another layout: use a new run name")
        here = held.digest if held is not None else b""
        if held is not None and (not headers or headers[-1].result_digest == here):
            version = headers[-1].version if headers else held.version
            if version != held.version:  # the step to it was zero
                with self._transaction():
                    self._db.execute("UPDATE run SET version=? WHERE run=?", (version, run))
            return held if version == held.version else replace(held, version=version)
        fits = [i for i, h in enumerate(headers) if h.kind is Kind.SNAPSHOT or (here and h.base_digest == here)]
        if not fits:
            have = f"version {held.version}" if held is not None else "nothing"
            raise MismatchError("base-digest", f"downlink: this site holds {have}: no envelope starts there")
        chain, version = pieces[fits[-1] :], headers[-1].version
        if is_stream:
            return self._follow_on_disk(run, layout, version, held, chain, limits)
        return self._follow(run, layout, version, held, chain, limits)

    def _follow(
        self, run: str, layout: Layout, version: int, held: RunSnapshot | None, chain: Sequence[bytes], limits: Limits
    ) -> RunSnapshot:
        """The state at the end of a chain of envelopes, committed."""
        state = held.state if held is not None else None
        for piece in chain:
            _, state = decode_state(piece, layout, state, limits)
        assert state is not None
        residual = held.residual if held is not None else zeros(layout)
        names = self._blobs.put(to_bytes(state)), self._blobs.put(pack_residual(residual, layout))
        failpoint("site.received")
        self._save(run, layout, version, *names)
        return RunSnapshot(layout, version, state, residual)

    def _follow_on_disk(
        self, run: str, layout: Layout, version: int, held: RunSnapshot | None, chain: Sequence[bytes], limits: Limits
    ) -> RunSnapshot:
        """As ``_follow``, each state to a file, from the one before."""
        state = held.state if held is not None else None
        name = ""
        for piece in chain:
            name = self._blobs.put_all(serialize_chunks(v for _, v in stream_state(piece, layout, state, limits)))
            self._checked[name] = self._blobs.folder / name
            state = open_tensor_file(self._checked[name], layout)
        row = self._db.execute("SELECT residual FROM run WHERE run=?", (run,)).fetchone() if held is not None else None
        residual = row[0] if row is not None else STREAM + self._blobs.put(MAGIC)
        failpoint("site.received")
        self._save(run, layout, version, STREAM + name, residual)
        found = self.held(run)
        assert found is not None
        return found

    def reconcile_outbox(
        self, run: str, round_: int, base_digest: bytes, merged: Sequence[str], *, is_named: bool = False
    ) -> int:
        """Close the outbox but for a reply to this very request; unmerged updates return to the residual.

        A coordinator that was set back asks again for rounds that it had merged: replies to them and to later ones, or
        after the one that it says it merged last, are open again. What was given back and merged all the same, as it
        came before this site was heard under a new node id, is taken out of the residual again. If this site was set
        back itself, what it holds may have been merged or sent on since: residual and open replies are lost. They are
        too where one of those that change the residual cannot be read.

        Args:
            run: run name.
            round_: the round asked for now.
            base_digest: the published state that it starts from.
            merged: hex digests; this site's last merged update is among them.
            is_named: they are of this site alone.

        Returns:
            How many updates were returned.
        """
        if rollback.is_rolled_back(self._db, run, merged, is_named=is_named):
            LOG.error("run %s: this site was set back: its residual and open replies are lost", run)
            self._drop(run)
        rollback.record_merged(self._db, run, merged, is_named=is_named)
        rollback.reopen_undone(self._db, run, merged)
        self._db.execute("UPDATE outbox SET status='open' WHERE run=? AND status='merged' AND round>=?", (run, round_))
        try:
            return self._close(run, round_, base_digest, merged)
        except StateError as error:
            LOG.error("run %s: residual and open replies are lost: %s", run, error)
            self._drop(run)
            rollback.record_merged(self._db, run, merged, is_named=is_named)
            return 0

    def _close(self, run: str, round_: int, base_digest: bytes, merged: Sequence[str]) -> int:
        rows = self._db.execute(
            "SELECT round, digest, blob, status FROM outbox WHERE run=? AND round<=?"
            " AND (status='returned' OR (status='open' AND NOT (round=? AND base_digest=?))) ORDER BY round",
            (run, round_, round_, base_digest.hex()),
        ).fetchall()
        rows = [row for row in rows if row[3] == "open" or row[1] in merged]
        if not rows:
            return 0
        held = self.held(run)
        if held is None:
            return 0
        changed = [row for row in rows if row[1] not in merged or row[3] == "returned"]
        changes = [(self._blobs.get(blob), subtract if digest in merged else add) for _, digest, blob, _ in changed]
        (name,) = self._db.execute("SELECT residual FROM run WHERE run=?", (run,)).fetchone()
        name = self._changed(held, changes) if changes else name
        with self._transaction():
            for number, digest, *_ in rows:
                status = "merged" if digest in merged else "returned"
                self._db.execute("UPDATE outbox SET status=? WHERE run=? AND round=?", (status, run, number))
            self._db.execute("UPDATE run SET residual=? WHERE run=?", (name, run))
        return sum(change is add for _, change in changes)

    def _drop(self, run: str) -> None:
        """Empty residual and outbox of a run whose published state is held."""
        held = self.held(run)
        assert held is not None
        none = STREAM + self._blobs.put(MAGIC) if held.is_stream else ""
        name = none or self._blobs.put(pack_residual(zeros(held.layout), held.layout))
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE run=?", (run,))
            self._db.execute("UPDATE run SET residual=? WHERE run=?", (name, run))

    def _changed(self, held: RunSnapshot, changes: Sequence[tuple[bytes, Change]]) -> str:
        """Name of the residual with updates added to it, or taken out of it; part by part if it is kept so."""
        residual, name = held.residual, ""
        if not held.is_stream:
            for data, change in changes:
                residual = change(residual, decode_update(data, held.layout)[1])
            return self._blobs.put(pack_residual(residual, held.layout))
        for data, change in changes:
            parts = stream_decoded_update(data, held.layout)
            name = self._blobs.put_all(serialize_chunks(change(read_slices(residual, p), part) for p, part in parts))
            self._checked[name] = self._blobs.folder / name
            residual = open_tensor_file(self._checked[name], held.layout)
        return STREAM + name

    def check_not_replayed(self, run: str, round_: int, version: int, life: int = 0) -> None:
        """Take note of a task that the coordinator has signed; an older one is a copy that somebody kept.

        It would lead back to an old state, and return to the residual what was merged since. ``life`` is when the
        coordinator was restored: a later one begins anew.

        Raises:
            IdentityError: ``replay``: a later life, round or version was asked for before.
        """
        rollback.check_not_replayed(self._db, run, round_, version, life)

    def replace(self, run: str, round_: int, envelope: bytes) -> None:
        """Put another signature under a stored reply."""
        blob = self._blobs.put(envelope)
        with self._transaction():
            self._db.execute(
                "UPDATE outbox SET digest=?, blob=? WHERE run=? AND round=?",
                (envelope_digest(envelope).hex(), blob, run, round_),
            )

    def replay(self, run: str, round_: int, base_digest: bytes) -> bytes | None:
        """The reply to a round that was already done from the same state, or None."""
        row = self._db.execute(
            "SELECT blob FROM outbox WHERE run=? AND round=? AND base_digest=? AND status='open'",
            (run, round_, base_digest.hex()),
        ).fetchone()
        return self._blobs.get(row[0]) if row is not None else None

    def last_sent(self, run: str) -> Tensors | None:
        """The newest update in the outbox, as decoded; what encoders that iterate start from."""
        layout = self._layout(run)
        row = self._db.execute("SELECT blob FROM outbox WHERE run=? ORDER BY round DESC LIMIT 1", (run,)).fetchone()
        data = self._readable(row[0]) if row is not None else None
        return decode_update(data, layout)[1] if layout is not None and data is not None else None

    def _layout(self, run: str) -> Layout | None:
        row = self._db.execute("SELECT layout FROM run WHERE run=?", (run,)).fetchone()
        return Layout.from_json(row[0]) if row is not None else None

    def commit(
        self,
        run: str,
        round_: int,
        base_digest: bytes,
        envelope: bytes,
        residual: Tensors | BlobWriter,
        *,
        store: str = "none",
    ) -> None:
        """Store a reply and the residual that goes with it, atomically; ``store`` is as in ``Feedback``."""
        blob = self._blobs.put(envelope)
        if isinstance(residual, BlobWriter):
            rest = STREAM + residual.name
            self._checked[residual.name] = self._blobs.folder / residual.name
        else:
            layout = self._layout(run)
            assert layout is not None
            rest = self._blobs.put(pack_residual(residual, layout, store))
        with self._transaction():
            self._db.execute("DELETE FROM outbox WHERE run=? AND status!='open' AND round<?", (run, round_ - 8))
            self._db.execute(
                "INSERT OR REPLACE INTO outbox VALUES (?, ?, ?, ?, ?, 'open')",
                (run, round_, base_digest.hex(), envelope_digest(envelope).hex(), blob),
            )
            failpoint("site.before-commit")
            self._db.execute("UPDATE run SET residual=? WHERE run=?", (rest, run))
        failpoint("site.after-commit")

    def _keep_constants(self, run: str, envelope: bytes) -> None:
        digest, data = decode_constants(envelope)
        name = self._blobs.put(data)
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO constant VALUES (?, ?, ?)", (run, digest, name))

    def constants(self, run: str, digest: str) -> bytes | None:
        """The safetensors bytes that were sent with this digest, hex, or None."""
        row = self._db.execute("SELECT blob FROM constant WHERE run=? AND digest=?", (run, digest)).fetchone()
        return self._readable(row[0]) if row is not None else None

    def _readable(self, name: str) -> bytes | None:
        """A blob that can be done without."""
        try:
            return self._blobs.get(name)
        except StateError as error:
            LOG.warning("%s", error)
            return None

    def _check_outbox(self, run: str) -> None:
        """Raise ``StateError`` if a reply that may have to be replayed or given back is corrupt."""
        for (blob,) in self._db.execute("SELECT blob FROM outbox WHERE run=? AND status='open'", (run,)).fetchall():
            self._blobs.get(blob)

    def _forget(self, run: str) -> None:
        with self._transaction():
            for table in ("run", "outbox"):
                self._db.execute(f"DELETE FROM {table} WHERE run=?", (run,))

    def _save(self, run: str, layout: Layout, version: int, state: str, residual: str) -> None:
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?, ?)", (run, layout.to_json(), version, state, residual)
            )


def _is_constants(envelope: bytes) -> bool:
    return unpack(envelope, Limits(max_body=len(envelope))).header.kind is Kind.CONSTANTS
