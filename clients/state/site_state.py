"""Keeps what a site must not lose: published state, residual and outbox.

SQLite rows point at content-addressed blobs. A round is committed by one transaction that
holds the reply and the residual that goes with it; killed before, the round is done again;
killed after, the reply is answered from the outbox.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from clients.state import held_runs, last_tasks, outbox, rollback
from clients.state.held_runs import HeldRuns
from clients.state.outbox import Outbox
from clients.state.reconcile import Reconciler
from clients.state.run_tensors import ResidualWriter, RunSnapshot, StoredTensors
from fedcompress.config.train_task import TrainTask
from fedcompress.errors import MismatchError, StateError
from fedcompress.pipeline.coding import check_layout
from fedcompress.pipeline.states import decode_constants
from fedcompress.pipeline.updates import decode_update
from fedcompress.storage.blobs import BlobStore
from fedcompress.storage.database import open_database, transaction
from fedcompress.storage.failpoints import failpoint
from fedcompress.types import Array, Layout, Tensors
from fedcompress.wire import Envelope, Kind, Limits, split_bundle, unpack
from fedcompress.wire import digest_of as envelope_digest

LOG = logging.getLogger("fedcompress.worker")
MAX_CONSTANTS = 1 << 34  # bytes of the constants of an adapter


class SiteState:
    """Keeps the durable state of one site; used by one worker at a time: the one that holds the lease of
    ``clients.worker.main``.

    Args:
        folder: the site's state folder; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._blobs = BlobStore(folder / "blobs", "site.blob")
        schema = held_runs.SCHEMA + outbox.SCHEMA + rollback.SCHEMA + last_tasks.SCHEMA
        self._db = open_database(folder / "session.db", schema, any_thread=True)
        self._runs = HeldRuns(self._db, self._blobs)
        self._outbox = Outbox(self._db, self._blobs)
        self.find_reply = self._outbox.find_reply  # the reply to a round that was done before
        self._reconciler = Reconciler(self._db, self._blobs, self._runs, self._outbox, self._transaction)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Commit what is written inside, and then delete the blobs that nothing points at."""
        with transaction(self._db):
            yield
        names = {*self._runs.blob_names(), *self._outbox.blob_names()}
        self._runs.forget_files_but(names)
        self._blobs.keep_only(names)

    def snapshot(self, run: str) -> RunSnapshot | None:
        """Return what is held of a run, or None.

        Raises:
            StateError: a blob is missing or changed.
        """
        return self._runs.snapshot(run)

    def residual(self, run: str, layout: Layout) -> Mapping[str, Array]:
        """Read what was not sent of a run that is held.

        Raises:
            StateError: its blob is missing or changed.
        """
        return self._runs.load_residual(run, layout)

    def write_residual(
        self, run: str, layout: Layout, precision: str = "none"
    ) -> AbstractContextManager[ResidualWriter]:
        """Open a writer for the residual that is to replace a run's.

        Args:
            run: name of the run.
            layout: its layout.
            precision: how its values are stored, as ``ErrorFeedback.store`` has it.

        Returns:
            A context that gives a ``ResidualWriter``; ``commit`` takes what it has stored after the context was left.
        """
        stored = self._runs.stored_residual(run)
        return self._runs.tensors(on_disk=stored.is_stream).write_residual(layout, precision)

    def apply_downlink(self, run: str, layout: Layout, bundle: bytes, *, on_disk: bool = False) -> RunSnapshot:
        """Advance the published state along the envelopes of a downlink.

        Starts at the last envelope that fits: a snapshot, or one that begins at the state held. A downlink that ends
        where the site already is changes no tensor. If what is held is corrupt, a snapshot starts anew; residual and
        outbox are lost.

        Args:
            run: name of the run.
            layout: the site's own layout of the run.
            bundle: envelopes, one behind the other.
            on_disk: tensors are never in memory together; as the run was begun.

        Returns:
            What the site holds then.

        Raises:
            WireError: malformed bytes.
            MismatchError: no envelope fits, or the digest reached is not the sender's.
            StateError: what is held is corrupt, and there is no snapshot.
        """
        chain = self._open_downlink(run, layout, bundle)
        held = self._load_or_start_anew(run, chain)
        if held is not None and held.layout != layout:
            raise MismatchError("layout-mismatch", f"run {run}: has begun with another layout: use a new run name")
        digest = held.digest if held is not None else b""
        if held is not None and (not chain or chain[-1].header.result_digest == digest):
            version = chain[-1].header.version if chain else held.version
            if version != held.version:  # the step to it was zero
                with self._transaction():
                    self._runs.set_version(run, version)
            return replace(held, version=version, checked_digest=digest)
        starts = [
            number
            for number, header in enumerate(e.header for e in chain)
            if header.kind is Kind.SNAPSHOT or (digest and header.base_digest == digest)
        ]
        if not starts:
            have = f"version {held.version}" if held is not None else "nothing"
            raise MismatchError("base-digest", f"downlink: this site holds {have}: no envelope starts there")
        return self._follow(run, layout, held, chain[starts[-1] :], on_disk=on_disk)

    def _open_downlink(self, run: str, layout: Layout, bundle: bytes) -> list[Envelope]:
        """Unpack the envelopes of a downlink, each hashed once; constants, which may lead them, are kept at once."""
        limits = Limits.for_numel(layout.numel)
        pieces = split_bundle(bundle, Limits(max_body=max(limits.max_body, MAX_CONSTANTS)))
        if len(pieces) > 1:
            first = unpack(pieces[0], Limits(max_body=len(pieces[0])))
            if first.header.kind is Kind.CONSTANTS:
                self._keep_constants(run, first)
                pieces.pop(0)
        chain = [unpack(piece, limits) for piece in pieces]
        for envelope in chain:
            check_layout(envelope.header, layout)
        return chain

    def _load_or_start_anew(self, run: str, chain: Sequence[Envelope]) -> RunSnapshot | None:
        try:
            held = self.snapshot(run)
            self._outbox.check_open(run)
        except StateError as error:
            if not any(envelope.header.kind is Kind.SNAPSHOT for envelope in chain):
                raise
            LOG.error("run %s: residual and outbox are lost, starting anew: %s", run, error)
            with self._transaction():
                self._runs.delete(run)
                self._outbox.clear(run)
            return None
        return held

    def _follow(
        self, run: str, layout: Layout, held: RunSnapshot | None, chain: Sequence[Envelope], *, on_disk: bool
    ) -> RunSnapshot:
        """Commit the state at the end of a chain of envelopes; the residual stays what it was."""
        tensors = self._runs.tensors(on_disk=on_disk)
        state, snapshot = tensors.follow(layout, chain, held)
        residual = tensors.store_zeros(layout) if held is None else self._runs.stored_residual(run)
        failpoint("site.received")
        with self._transaction():
            self._runs.save(run, snapshot, state, residual)
        return snapshot

    def reconcile_outbox(
        self,
        run: str,
        round_: int,
        base_digest: bytes,
        merged: Sequence[str],
        *,
        is_named: bool = False,
        is_usable: Callable[[bytes], bool] = lambda reply: True,
    ) -> int:
        """Close the outbox but for a reply to this very request; unmerged updates return to the residual.

        ``Reconciler.run`` says what happens where this site, or the coordinator, was set back to an older state.

        Args:
            run: run name.
            round_: the round asked for now.
            base_digest: the published state that it starts from.
            merged: hex digests; this site's last merged update is among them.
            is_named: the task names this site, so that ``merged`` has its updates alone; else the last of every site.
            is_usable: whether the stored reply to this request may be sent; one that may not is given back, too.

        Returns:
            How many updates were returned.

        Raises:
            StateError: the stored reply to this request is missing or changed.
        """
        return self._reconciler.run(run, round_, base_digest, merged, is_named=is_named, is_usable=is_usable)

    def check_not_replayed(self, run: str, round_: int, version: int, life: int = 0) -> None:
        """Take note of a task that the coordinator has signed; an older one is a copy that somebody kept.

        It would lead back to an old state, and return to the residual what was merged since.

        Args:
            run: run name.
            round_: the round asked for.
            version: of the published state that it starts from.
            life: when the coordinator was restored, seconds since 1970; a later one begins anew.

        Raises:
            IdentityError: ``replay``: a later life, round or version was asked for before.
        """
        rollback.check_not_replayed(self._db, run, round_, version, life)

    def record_task(self, task: TrainTask) -> None:
        """Remember a task that this site takes as the last one of its run."""
        with transaction(self._db):
            last_tasks.record_task(self._db, task)

    def replace_reply(self, run: str, round_: int, envelope: bytes) -> None:
        """Put another signature under a stored reply.

        Args:
            run: run name.
            round_: the round that it answers.
            envelope: the same reply with the new signature.
        """
        blob = self._blobs.put(envelope)
        with self._transaction():
            self._outbox.replace(run, round_, envelope_digest(envelope), blob)

    def last_sent(self, run: str) -> Tensors | None:
        """Decode the newest update in the outbox, which encoders that iterate start from.

        None where there is none to be read, or where tensors stay on the disk: a whole update is not to be in memory
        there, so that encoders start anew in each round.
        """
        layout = self._runs.layout(run)
        if layout is None or self._runs.stored_residual(run).is_stream:
            return None
        envelope = self._outbox.find_last(run)
        return decode_update(envelope, layout)[1] if envelope is not None else None

    def commit(self, run: str, round_: int, base_digest: bytes, envelope: bytes, residual: StoredTensors) -> None:
        """Commit a reply and the residual that goes with it, both or neither.

        Args:
            run: run name.
            round_: the round that it answers.
            base_digest: of the published state that the round started from.
            envelope: the reply, signed.
            residual: what ``write_residual`` has stored.
        """
        blob = self._blobs.put(envelope)
        with self._transaction():
            self._outbox.add(run, round_, base_digest, envelope_digest(envelope), blob)
            failpoint("site.before-commit")
            self._runs.set_residual(run, residual)
        failpoint("site.after-commit")

    def _keep_constants(self, run: str, envelope: Envelope) -> None:
        digest, data = decode_constants(envelope)
        name = self._blobs.put(data)
        with self._transaction():
            self._runs.save_constants(run, digest, name)

    def constants(self, run: str, digest: str) -> bytes | None:
        """Return the safetensors bytes that were sent with this digest, hex; None where there are none to be read."""
        return self._runs.constants(run, digest)
