"""Content-addressed files: the durable half of a site's session and of the ledger.

A blob's name is the SHA-256 of its bytes; it is written whole or not at all, and checked
when it is read. Rows in SQLite point at blobs, so that one transaction commits a round.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from fedcompress.errors import StateError
from fedcompress.failpoints import reach


class BlobStore:
    """Blobs in one folder.

    Args:
        folder: created if it is not there.
        failpoint: name of a place of ``FAILPOINTS`` in the middle of a file.
    """

    def __init__(self, folder: Path, failpoint: str = "") -> None:
        self._folder = folder
        self._failpoint = failpoint
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store and fsync; return the name. Storing twice is harmless."""
        name = hashlib.sha256(data).hexdigest()
        path = self._folder / name
        if not path.exists():
            part = self._folder / f"{name}.{os.getpid()}.part"
            with part.open("wb") as stream:
                stream.write(data[: len(data) // 2])
                reach(self._failpoint)
                stream.write(data[len(data) // 2 :])
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, path)
            self._sync_folder()
        return name

    def get(self, name: str) -> bytes:
        """Bytes of a blob.

        Raises:
            StateError: it is missing, or its bytes changed.
        """
        path = self._folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StateError(f"blob: {path}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise StateError(f"blob: {path}: SHA-256 does not match its name: the file was changed")
        return data

    def replace(self, name: str, data: bytes) -> None:
        """Write a blob anew whose file was damaged.

        Raises:
            StateError: these are other bytes.
        """
        if hashlib.sha256(data).hexdigest() != name:
            raise StateError(f"blob: {self._folder / name}: cannot be rebuilt: SHA-256 does not match its name")
        (self._folder / name).unlink(missing_ok=True)
        self.put(data)

    def keep_only(self, names: Iterable[str]) -> int:
        """Delete all other files, unfinished ones too; return how many."""
        wanted, deleted = set(names), 0
        for path in self._folder.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)
                deleted += 1
        return deleted

    def _sync_folder(self) -> None:
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
