"""Keeps the tensors of a run at a site: whole in memory (adapters), or on the disk alone (weights of the base).

This is the one place where the two differ for the site's state. Both read and write named blobs; the name of a blob
in the database says which of the two has written it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from fedcompress.chunks import TensorSlice, collect_slices
from fedcompress.codecs import pack_residual, unpack_residual
from fedcompress.errors import ConfigError
from fedcompress.pipeline.states import decode_state, stream_state
from fedcompress.storage.blobs import BlobStore, BlobWriter
from fedcompress.storage.tensor_file import (
    MAGIC,
    StreamSerializer,
    ZeroTensors,
    open_tensor_file,
    serialize_chunks,
    streamed_state_digest,
)
from fedcompress.types import Array, Layout, Tensors, from_bytes, to_bytes, zeros
from fedcompress.wire import Envelope

_STREAM = "stream:"  # before the name of a blob whose tensors stay on the disk


@dataclass(frozen=True)
class StoredTensors:
    """Names the blob of a state or a residual, and says whether its tensors stay on the disk.

    Args:
        blob: name of the blob.
        is_stream: its tensors are read slice by slice, and never whole.
    """

    blob: str
    is_stream: bool = False

    @classmethod
    def parse(cls, text: str) -> StoredTensors:
        """Read what a column of the database has."""
        return cls(text.removeprefix(_STREAM), text.startswith(_STREAM))

    def __str__(self) -> str:
        return f"{_STREAM if self.is_stream else ''}{self.blob}"


@dataclass(frozen=True)
class RunSnapshot:
    """Holds what the site has of a run: the published state that it trains from, and what it has not sent yet.

    Args:
        layout: the layout of both.
        version: of the published state.
        state: the published state, float32 by name.
        residual: what codecs have left out of the site's updates, float32 by name.
        checked_digest: the state's digest where it was compared with the sender's; else it is computed when needed.
    """

    layout: Layout
    version: int
    state: Mapping[str, Array]
    residual: Mapping[str, Array]
    checked_digest: bytes = b""

    @cached_property
    def digest(self) -> bytes:
        """Return the digest of the published state."""
        return self.checked_digest or streamed_state_digest(self.layout, self.state)


@dataclass(frozen=True)
class StreamedSnapshot(RunSnapshot):
    """A snapshot whose tensors stay on the disk and are read slice by slice.

    Args:
        file: the stream of the published state.
    """

    file: Path = Path()


def _start_of(held: RunSnapshot | None) -> tuple[Mapping[str, Array] | None, bytes]:
    """Return the state that a chain begins at, and its digest."""
    return (held.state, held.digest) if held is not None else (None, b"")


class ResidualWriter(Protocol):
    """Takes a residual chunk by chunk, and names the blob once it is whole."""

    def add(self, slices: list[TensorSlice], values: Tensors) -> None:
        """Add the values of the next chunk, in the order of the layout."""
        ...

    @property
    def stored(self) -> StoredTensors:
        """Return the name of the blob; there is one only after the writer's context was left."""
        ...


class RunTensors(Protocol):
    """Reads and writes the states and residuals of runs as blobs."""

    def load(self, layout: Layout, version: int, state: StoredTensors, residual: StoredTensors) -> RunSnapshot:
        """Read what the site holds of a run.

        Args:
            layout: the run's layout.
            version: of the published state.
            state: names its blob.
            residual: names the blob of the residual.

        Returns:
            The snapshot; its tensors may be read from the disk when they are used.

        Raises:
            StateError: a blob is missing or changed.
        """
        ...

    def load_residual(self, layout: Layout, stored: StoredTensors) -> Mapping[str, Array]:
        """Read a residual; raises as ``load``."""
        ...

    def follow(
        self, layout: Layout, chain: Sequence[Envelope], held: RunSnapshot | None
    ) -> tuple[StoredTensors, RunSnapshot]:
        """Decode a chain of envelopes, each from the state before, and store the last state.

        Args:
            layout: the run's layout.
            chain: the envelopes in order; the first is a snapshot, or begins at the state held.
            held: what the site holds now, if anything.

        Returns:
            The name of the state's blob, and the new snapshot; its residual is the one held, or zeros.

        Raises:
            WireError: malformed bytes.
            MismatchError: a state is not the sender's.
        """
        ...

    def store_zeros(self, layout: Layout) -> StoredTensors:
        """Store a residual of zeros."""
        ...

    def write_residual(self, layout: Layout, precision: str) -> AbstractContextManager[ResidualWriter]:
        """Open a writer for a residual.

        Args:
            layout: the run's layout.
            precision: how its values are stored, as ``ErrorFeedback.store`` has it.

        Returns:
            A context that gives a ``ResidualWriter``.
        """
        ...


class TensorsInMemory:
    """Keeps states as raw float32, and residuals in the precision of the run; both are whole in memory when used."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def load(self, layout: Layout, version: int, state: StoredTensors, residual: StoredTensors) -> RunSnapshot:
        """Read state and residual, whole."""
        values = from_bytes(self._blobs.get(state.blob), layout)
        return RunSnapshot(layout, version, values, self.load_residual(layout, residual))

    def load_residual(self, layout: Layout, stored: StoredTensors) -> Tensors:
        """Read a residual, whole."""
        return unpack_residual(self._blobs.get(stored.blob), layout)

    def follow(
        self, layout: Layout, chain: Sequence[Envelope], held: RunSnapshot | None
    ) -> tuple[StoredTensors, RunSnapshot]:
        """Decode a chain in memory, and store the last state."""
        state, digest = _start_of(held)
        for envelope in chain:
            _, state = decode_state(envelope, layout, state, base_digest=digest)
            digest = envelope.header.result_digest
        assert state is not None
        stored = StoredTensors(self._blobs.put(to_bytes(state)))
        residual = held.residual if held is not None else zeros(layout)
        return stored, RunSnapshot(layout, chain[-1].header.version, state, residual, digest)

    def store_zeros(self, layout: Layout) -> StoredTensors:
        """Store a residual of zeros."""
        return StoredTensors(self._blobs.put(pack_residual(zeros(layout), layout)))

    @contextmanager
    def write_residual(self, layout: Layout, precision: str) -> Iterator[ResidualWriter]:
        """Collect a residual in memory, and store it at the end."""
        writer = _CollectingWriter()
        yield writer
        packed = pack_residual(collect_slices(layout, writer.chunks), layout, precision)
        writer.stored = StoredTensors(self._blobs.put(packed))


class _CollectingWriter:
    def __init__(self) -> None:
        self.chunks: list[tuple[list[TensorSlice], Tensors]] = []
        self.stored = StoredTensors("")

    def add(self, slices: list[TensorSlice], values: Tensors) -> None:
        self.chunks.append((slices, values))


class TensorsOnDisk:
    """Keeps states and residuals as streams, of which no more than a chunk is in memory; values are float32."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._checked: dict[str, Path] = {}  # blobs whose bytes were compared with their name in this process's life

    def load(self, layout: Layout, version: int, state: StoredTensors, residual: StoredTensors) -> StreamedSnapshot:
        """Open state and residual."""
        file = self._path(state.blob)
        values = open_tensor_file(file, layout)
        kept = open_tensor_file(self._path(residual.blob), layout)
        return StreamedSnapshot(layout, version, values, kept, file=file)

    def load_residual(self, layout: Layout, stored: StoredTensors) -> Mapping[str, Array]:
        """Open a residual; its bytes are checked again, since a disk may have changed them since the last round."""
        self._checked.pop(stored.blob, None)
        return open_tensor_file(self._path(stored.blob), layout)

    def follow(
        self, layout: Layout, chain: Sequence[Envelope], held: RunSnapshot | None
    ) -> tuple[StoredTensors, RunSnapshot]:
        """Decode a chain, each state to a file from the one before."""
        name = ""
        state, digest = _start_of(held)
        for envelope in chain:
            chunks = stream_state(envelope, layout, state, base_digest=digest)
            name = self._blobs.put_all(serialize_chunks(values for _, values in chunks))
            state = open_tensor_file(self._note_written(name), layout)
            digest = envelope.header.result_digest
        assert state is not None
        residual = held.residual if held is not None else ZeroTensors(layout)
        version, file = chain[-1].header.version, self._checked[name]
        return StoredTensors(name, is_stream=True), StreamedSnapshot(layout, version, state, residual, digest, file)

    def store_zeros(self, layout: Layout) -> StoredTensors:
        """Store a stream that stands for zeros."""
        return StoredTensors(self._blobs.put(MAGIC), is_stream=True)

    @contextmanager
    def write_residual(self, layout: Layout, precision: str) -> Iterator[ResidualWriter]:
        """Write a residual to a stream, chunk by chunk.

        Raises:
            ConfigError: the precision is not float32.
        """
        if precision != "none":
            raise ConfigError("task.residual_store", precision, "must be none where weights of the base are trained")
        with self._blobs.writer() as blob:
            writer = _StreamingWriter(blob)
            yield writer
        self._note_written(blob.name)
        writer.stored = StoredTensors(blob.name, is_stream=True)

    def forget_all_but(self, names: set[str]) -> None:
        """Forget blobs that are no longer kept."""
        self._checked = {name: path for name, path in self._checked.items() if name in names}

    def _path(self, name: str) -> Path:
        if name not in self._checked:
            self._checked[name] = self._blobs.path(name)
        return self._checked[name]

    def _note_written(self, name: str) -> Path:
        """Note a blob that was written, and so hashed, just now."""
        self._checked[name] = self._blobs.folder / name
        return self._checked[name]


class _StreamingWriter:
    def __init__(self, blob: BlobWriter) -> None:
        self._blob = blob
        self._serializer = StreamSerializer()
        self._blob.write(MAGIC)
        self.stored = StoredTensors("", is_stream=True)

    def add(self, slices: list[TensorSlice], values: Tensors) -> None:
        for data in self._serializer.add(values):
            self._blob.write(data)
