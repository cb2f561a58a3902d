"""Keeps what a site holds of each run: published state, residual and constants, as rows that point at blobs.

Every method that writes a row is a part of the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from clients.state.outbox import read_or_warn
from clients.state.run_tensors import RunSnapshot, RunTensors, StoredTensors, TensorsInMemory, TensorsOnDisk
from fedcompress.storage.blobs import BlobStore
from fedcompress.types import Array, Layout

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  run TEXT PRIMARY KEY, layout TEXT NOT NULL, version INTEGER NOT NULL,
  state TEXT NOT NULL, residual TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS constant (run TEXT PRIMARY KEY, digest TEXT NOT NULL, blob TEXT NOT NULL);
"""


class HeldRuns:
    """Reads and writes the rows of runs, and the tensors that they point at."""

    def __init__(self, database: sqlite3.Connection, blobs: BlobStore) -> None:
        self._db = database
        self._blobs = blobs
        self._in_memory = TensorsInMemory(blobs)
        self._on_disk = TensorsOnDisk(blobs)

    def tensors(self, *, on_disk: bool) -> RunTensors:
        """Return what keeps the tensors of a run, whole in memory or on the disk alone."""
        return self._on_disk if on_disk else self._in_memory

    def blob_names(self) -> Iterator[str]:
        """Yield the names of all blobs that states, residuals and constants are in."""
        for row in self._db.execute("SELECT state, residual FROM run").fetchall():
            yield from (StoredTensors.parse(text).blob for text in row)
        yield from (name for (name,) in self._db.execute("SELECT blob FROM constant").fetchall())

    def forget_files_but(self, names: set[str]) -> None:
        """Forget which files were checked, but for those that are kept."""
        self._on_disk.forget_all_but(names)

    def layout(self, run: str) -> Layout | None:
        """Return the layout of a run, or None where it is not held."""
        row = self._db.execute("SELECT layout FROM run WHERE run=?", (run,)).fetchone()
        return Layout.from_json(row[0]) if row is not None else None

    def snapshot(self, run: str) -> RunSnapshot | None:
        """Return what is held of a run, or None.

        Raises:
            StateError: a blob is missing or changed.
        """
        row = self._db.execute("SELECT layout, version, state, residual FROM run WHERE run=?", (run,)).fetchone()
        if row is None:
            return None
        state, residual = StoredTensors.parse(row[2]), StoredTensors.parse(row[3])
        return self.tensors(on_disk=state.is_stream).load(Layout.from_json(row[0]), row[1], state, residual)

    def stored_residual(self, run: str) -> StoredTensors:
        """Return where the residual of a run that is held is stored."""
        (text,) = self._db.execute("SELECT residual FROM run WHERE run=?", (run,)).fetchone()
        return StoredTensors.parse(text)

    def load_residual(self, run: str, layout: Layout) -> Mapping[str, Array]:
        """Read what was not sent of a run that is held.

        Raises:
            StateError: its blob is missing or changed.
        """
        stored = self.stored_residual(run)
        return self.tensors(on_disk=stored.is_stream).load_residual(layout, stored)

    def save(self, run: str, snapshot: RunSnapshot, state: StoredTensors, residual: StoredTensors) -> None:
        """Write the row of a run.

        Args:
            run: name of the run.
            snapshot: its layout and version.
            state: where the published state is stored.
            residual: where the residual is stored.
        """
        self._db.execute(
            "INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?, ?)",
            (run, snapshot.layout.to_json(), snapshot.version, str(state), str(residual)),
        )

    def set_version(self, run: str, version: int) -> None:
        """Give the state that is held another number."""
        self._db.execute("UPDATE run SET version=? WHERE run=?", (version, run))

    def set_residual(self, run: str, residual: StoredTensors) -> None:
        """Put another residual in the place of a run's."""
        self._db.execute("UPDATE run SET residual=? WHERE run=?", (str(residual), run))

    def delete(self, run: str) -> None:
        """Delete the row of a run."""
        self._db.execute("DELETE FROM run WHERE run=?", (run,))

    def save_constants(self, run: str, digest: str, blob: str) -> None:
        """Write the row of a run's constants.

        Args:
            run: name of the run.
            digest: of the constants' tensors, hex.
            blob: name of the blob with their safetensors bytes.
        """
        self._db.execute("INSERT OR REPLACE INTO constant VALUES (?, ?, ?)", (run, digest, blob))

    def constants(self, run: str, digest: str) -> bytes | None:
        """Return the safetensors bytes that were sent with this digest, hex; None where there are none to be read."""
        row = self._db.execute("SELECT blob FROM constant WHERE run=? AND digest=?", (run, digest)).fetchone()
        return read_or_warn(self._blobs, row[0]) if row is not None else None


def read_held_run(folder: Path, run: str) -> RunSnapshot | None:
    """Read what a site holds of a run, from another process than its worker's; None if it holds nothing.

    Args:
        folder: of the session, in the site's state directory.
        run: name of the run.

    Raises:
        StateError: a blob is missing or changed.
    """
    path = folder / "session.db"
    if not path.is_file():
        return None
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        return HeldRuns(database, BlobStore(folder / "blobs", "site.blob")).snapshot(run)
    finally:
        database.close()
