"""Content-addressed files: the durable half of a site's session and of the ledger.

A blob's name is the SHA-256 of its bytes; it is written whole or not at all, and checked
when it is read. Rows in SQLite point at blobs, so that one transaction commits a round.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedcompress.errors import AccessError, StateError
from fedcompress.storage.disk_space import reserve_space
from fedcompress.storage.failpoints import failpoint
from fedcompress.storage.file_access import is_passing


class BlobWriter:
    """Takes the bytes of a blob."""

    def __init__(self, stream: BinaryIO, failpoint: str = "") -> None:
        self._stream, self._sha, self._failpoint = stream, hashlib.sha256(), failpoint

    def write(self, chunk: bytes | memoryview) -> None:
        """The next bytes."""
        self._sha.update(chunk)
        self._stream.write(chunk)
        if self._failpoint:
            failpoint(self._failpoint)
            self._failpoint = ""

    @property
    def name(self) -> str:
        """Of the blob that these bytes are."""
        return self._sha.hexdigest()


class BlobStore:
    """Blobs in one folder.

    Args:
        folder: created if it is not there.
        failpoint: name of a place of ``FAILPOINTS`` in the middle of a file.
    """

    def __init__(self, folder: Path, failpoint: str = "") -> None:
        self.folder = folder
        self._failpoint = failpoint
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store and fsync; return the name. Storing twice is harmless, and heals a file that was damaged.

        Raises:
            NoSpaceError: the disk is full; nothing is left of it.
        """
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / name
        if not self._is_whole(path):
            with self._part(name) as part, part.open("wb") as stream:
                stream.write(data[: len(data) // 2])
                failpoint(self._failpoint)
                stream.write(data[len(data) // 2 :])
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, path)
            self._sync_folder()
        return name

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """A blob that is written in pieces, and never in memory as a whole; it has its name when the block ends."""
        with self._part(uuid.uuid4().hex) as part, part.open("wb") as stream:
            writer = BlobWriter(stream, self._failpoint)
            yield writer
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, self.folder / writer.name)
        self._sync_folder()

    @contextmanager
    def _part(self, name: str) -> Iterator[Path]:
        """A file to write to, which goes if the block fails: on a full disk it would take the room that is freed."""
        part = self.folder / f"{name}.{os.getpid()}.part"
        try:
            with reserve_space(self.folder / name):
                yield part
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def put_all(self, chunks: Iterable[bytes | memoryview]) -> str:
        """As ``put``, of bytes that come in pieces."""
        with self.writer() as writer:
            for chunk in chunks:
                writer.write(chunk)
        return writer.name

    def path(self, name: str) -> Path:
        """The file of a blob, whose bytes were checked.

        Raises:
            StateError: it is missing, or its bytes changed.
            AccessError: it cannot be opened now.
        """
        path = self.folder / name
        if not path.is_file():
            raise StateError(f"blob: {path}: cannot be read: it is not there")
        if not self._is_whole(path):
            raise StateError(f"blob: {path}: SHA-256 does not match its name: the file was changed")
        return path

    @staticmethod
    def _is_whole(path: Path) -> bool:
        """Whether it is there with the bytes that its name says."""
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == path.name
        except OSError as error:
            if is_passing(error):
                raise AccessError(path, error) from error
            return False

    def get(self, name: str) -> bytes:
        """Bytes of a blob.

        Raises:
            StateError: it is missing, or its bytes changed.
            AccessError: it cannot be opened now.
        """
        path = self.folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            if is_passing(error):
                raise AccessError(path, error) from error
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
            raise StateError(f"blob: {self.folder / name}: cannot be rebuilt: SHA-256 does not match its name")
        (self.folder / name).unlink(missing_ok=True)
        self.put(data)

    def keep_only(self, names: Iterable[str]) -> int:
        """Delete all other files, unfinished ones too; return how many."""
        wanted, deleted = set(names), 0
        for path in self.folder.iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)
                deleted += 1
        return deleted

    def _sync_folder(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
