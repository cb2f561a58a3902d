"""Blobs are content-addressed files; they hold the large part of what a site and the coordinator must not lose.

The name of a blob is the SHA-256 of its bytes, in hex. It is written whole or not at all, and checked when it is read.
Rows in SQLite name blobs, so that one transaction commits a round.
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
    """A blob writer takes the bytes of one blob, piece by piece.

    Args:
        stream: file that the bytes go to.
        failpoint: name of a place of ``FAILPOINTS``, reached after the first piece; empty: none.
    """

    def __init__(self, stream: BinaryIO, failpoint: str = "") -> None:
        self._stream = stream
        self._sha = hashlib.sha256()
        self._failpoint = failpoint

    def write(self, chunk: bytes | memoryview) -> None:
        """Append the next bytes."""
        self._sha.update(chunk)
        self._stream.write(chunk)
        if self._failpoint:
            failpoint(self._failpoint)
            self._failpoint = ""

    @property
    def name(self) -> str:
        """Return the name of the blob that the bytes written so far would be."""
        return self._sha.hexdigest()


class BlobStore:
    """A blob store holds blobs in one folder.

    Args:
        folder: where the files are; it is created if it is not there.
        failpoint: name of a place of ``FAILPOINTS`` that is reached in the middle of a file; empty: none.
    """

    def __init__(self, folder: Path, failpoint: str = "") -> None:
        self.folder = folder
        self._failpoint = failpoint
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes) -> str:
        """Store bytes, with fsync. Storing them twice is harmless, and heals a file that was damaged.

        Returns:
            The name of the blob.

        Raises:
            NoSpaceError: the disk is full; no part of the file is left behind.
        """
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / name
        if not self._is_whole(path):
            with self._unfinished(name) as part, part.open("wb") as stream:
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
        """Write a blob in pieces, so that it is never in memory as a whole.

        Yields:
            What takes the pieces. The blob is stored when the block ends without an error.
        """
        with self._unfinished(uuid.uuid4().hex) as part, part.open("wb") as stream:
            writer = BlobWriter(stream, self._failpoint)
            yield writer
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, self.folder / writer.name)
        self._sync_folder()

    @contextmanager
    def _unfinished(self, name: str) -> Iterator[Path]:
        """Yield a file to write to. If the block fails it is deleted: on a full disk it would take up freed room."""
        part = self.folder / f"{name}.{os.getpid()}.part"
        try:
            with reserve_space(self.folder / name):
                yield part
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def put_all(self, chunks: Iterable[bytes | memoryview]) -> str:
        """Store bytes that come in pieces, and return the name of the blob; see ``put``."""
        with self.writer() as writer:
            for chunk in chunks:
                writer.write(chunk)
        return writer.name

    def path(self, name: str) -> Path:
        """Return the file of a blob, after its bytes were checked.

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
        """Return whether a file exists and has the bytes that its name says."""
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == path.name
        except OSError as error:
            if is_passing(error):
                raise AccessError(path, error) from error
            return False

    def get(self, name: str) -> bytes:
        """Return the bytes of a blob, checked.

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

        Args:
            name: of the blob.
            data: its bytes, gained in another way.

        Raises:
            StateError: these are not the bytes that the name says.
        """
        if hashlib.sha256(data).hexdigest() != name:
            raise StateError(f"blob: {self.folder / name}: cannot be rebuilt: SHA-256 does not match its name")
        (self.folder / name).unlink(missing_ok=True)
        self.put(data)

    def keep_only(self, names: Iterable[str]) -> int:
        """Delete all blobs but those of the given names, and all unfinished files; return how many files went."""
        retained = set(names)
        deleted = 0
        for path in self.folder.iterdir():
            if path.name not in retained:
                path.unlink(missing_ok=True)
                deleted += 1
        return deleted

    def _sync_folder(self) -> None:
        """Make a rename in the folder durable."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
