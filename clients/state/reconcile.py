"""Settles what became of a site's replies, as the coordinator's next request tells, and the residual that follows."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from clients.state import rollback
from clients.state.held_runs import HeldRuns
from clients.state.outbox import Outbox, OutboxEntry
from clients.state.run_tensors import StoredTensors
from fedcompress.chunks import read_slices
from fedcompress.errors import StateError
from fedcompress.pipeline.coding import stream_decoded_update
from fedcompress.storage.blobs import BlobStore
from fedcompress.types import Layout, add, subtract

LOG = logging.getLogger("fedcompress.worker")


class Reconciler:
    """Closes the outbox, and returns to the residual what was not merged.

    Args:
        database: the site's.
        blobs: that hold the replies.
        runs: what is held.
        outbox: the replies.
        transaction: makes a transaction of the site's state.
    """

    def __init__(
        self,
        database: sqlite3.Connection,
        blobs: BlobStore,
        runs: HeldRuns,
        outbox: Outbox,
        transaction: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._db = database
        self._blobs = blobs
        self._runs = runs
        self._outbox = outbox
        self._transaction = transaction

    def run(
        self,
        run: str,
        round_: int,
        base_digest: bytes,
        merged: Sequence[str],
        *,
        is_named: bool,
        is_usable: Callable[[bytes], bool],
    ) -> int:
        """Close the outbox but for a reply to this very request.

        Replies that were merged are closed as such; the updates of all others return to the residual. Three things
        may have gone wrong before:

        - The coordinator was set back, and asks again for rounds that it had merged. Replies to such a round and to
          later ones, and those after the one that it says it merged last, are open again.
        - An update was given back and merged all the same, since it came before this site was heard under a new node
          id. It is taken out of the residual again.
        - This site was set back itself, so that what it holds may have been merged or sent on since; or a reply that
          changes the residual cannot be read. Residual and open replies are lost.

        Args:
            run: run name.
            round_: the round asked for now.
            base_digest: the published state that it starts from.
            merged: hex digests; this site's last merged update is among them.
            is_named: the task names this site, so that ``merged`` has its updates alone; else the last of every site.
            is_usable: whether the stored reply to this request may be sent.

        Returns:
            How many updates were returned to the residual.

        Raises:
            StateError: the stored reply to this request is missing or changed.
        """
        if rollback.is_rolled_back(self._db, run, merged, is_named=is_named):
            LOG.error("run %s: this site was set back: its residual and open replies are lost", run)
            self._drop_unsent(run)
        rollback.record_merged(self._db, run, merged, is_named=is_named)
        rollback.reopen_undone(self._db, run, merged)
        self._outbox.reopen_from(run, round_)
        reply = self._outbox.find_reply(run, round_, base_digest)
        if reply is not None and not is_usable(reply):
            base_digest = b""  # which no reply has: the stored one is given back as well
        try:
            return self._settle(run, self._outbox.list_unsettled(run, round_, base_digest, merged), merged)
        except StateError as error:
            LOG.error("run %s: residual and open replies are lost: %s", run, error)
            self._drop_unsent(run)
            rollback.record_merged(self._db, run, merged, is_named=is_named)
            return 0

    def _settle(self, run: str, entries: Sequence[OutboxEntry], merged: Sequence[str]) -> int:
        """Commit what became of replies with the residual that follows; return how many were given back."""
        layout = self._runs.layout(run) if entries else None
        if layout is None:
            return 0
        residual = self._runs.stored_residual(run)
        returned = 0
        for entry in entries:
            if entry.digest not in merged:
                residual = self._change(layout, residual, entry, is_returned=True)
                returned += 1
            elif entry.status == "returned":  # it was given back, and merged all the same
                residual = self._change(layout, residual, entry, is_returned=False)
        with self._transaction():
            for entry in entries:
                self._outbox.settle(run, entry, is_merged=entry.digest in merged)
            self._runs.set_residual(run, residual)
        return returned

    def _change(self, layout: Layout, stored: StoredTensors, entry: OutboxEntry, *, is_returned: bool) -> StoredTensors:
        """Store a residual with an update added to it, or taken out of it."""
        envelope = self._blobs.get(entry.blob)
        tensors = self._runs.tensors(on_disk=stored.is_stream)
        residual = tensors.load_residual(layout, stored)
        change = add if is_returned else subtract
        with tensors.write_residual(layout, "none") as writer:  # float32: the next reply stores it as the run wants
            for slices, update in stream_decoded_update(envelope, layout):
                writer.add(slices, change(read_slices(residual, slices), update))
        return writer.stored

    def _drop_unsent(self, run: str) -> None:
        """Empty residual and outbox of a run whose published state is held."""
        layout = self._runs.layout(run)
        assert layout is not None
        residual = self._runs.tensors(on_disk=self._runs.stored_residual(run).is_stream).store_zeros(layout)
        with self._transaction():
            self._outbox.clear(run)
            self._runs.set_residual(run, residual)
